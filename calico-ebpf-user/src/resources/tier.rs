//! `Tier`.

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::{BUILT_IN_TIERS, Tier, TierAction},
    parsed::Body,
};

const TIER: Table = &[("order", Use::Read), ("defaultAction", Use::Read)];
const ACTIONS: [(&str, TierAction); 2] = [("Deny", TierAction::Deny), ("Pass", TierAction::Pass)];

/// Reads a `Tier`. Those that exist always may be written down, too, as long as they say what they are.
pub(super) fn tier(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, TIER)?,
        None => Fields::none(document.at),
    };
    let order_path = path.field("order");
    let order = spec.get("order").and_then(|node| decoder.number(node, &order_path));
    let action_path = path.field("defaultAction");
    let default_action = match spec.get("defaultAction") {
        Some(node) => {
            let text = decoder.text(node, &action_path)?;
            let Some((_, action)) = ACTIONS.into_iter().find(|(name, _)| *name == text) else {
                let right = did_you_mean(text, ACTIONS.iter().map(|(name, _)| *name));
                decoder.error(node, &action_path, format!("\"{text}\" cannot be the default of a tier{right}"));
                return None;
            };
            action
        }
        None => TierAction::default(),
    };
    let name = document.metadata.name.as_deref()?;
    if let Some((_, right_order, right_action)) = BUILT_IN_TIERS.into_iter().find(|(known, ..)| *known == name) {
        let at = |name: &str| spec.get(name).map_or(spec.at, super::yaml::Node::place);
        if order != Some(right_order) {
            decoder.missing(at("order"), &order_path, format!("the order of the tier {name} is always {right_order}"));
        }
        if default_action != right_action {
            let (right, _) = ACTIONS[usize::from(right_action == TierAction::Pass)];
            let message = format!("the default action of the tier {name} is always {right}");
            decoder.missing(at("defaultAction"), &action_path, message);
        }
    }
    Some(Body::Tier(Tier { order, default_action }))
}
