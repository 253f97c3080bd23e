//! Annotations: those that are meant for this program. All others are comments.

use super::{
    decode::{Decoder, FieldPath, did_you_mean},
    model::DenyAction,
    yaml::Node,
};

/// What our annotations begin with.
const OURS: &str = "calico-ebpf/";
/// Of a policy or a profile, about all that its rules deny, and of a single rule.
const DENY_ACTION: &str = "calico-ebpf/deny-action";

/// Reads annotations; `denies`: whether they are of something that denies.
pub(super) fn read(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, denies: bool) -> Option<DenyAction> {
    let mut action = None;
    decoder.annotations(node, path, |decoder, entry, field| {
        if !entry.key.starts_with(OURS) {
            return;
        }
        if entry.key != DENY_ACTION {
            let right = did_you_mean(&entry.key, [DENY_ACTION].into_iter());
            decoder.key_error(entry, field, format!("unknown annotation{right}"));
        } else if denies {
            action = deny_action(decoder, &entry.value, field);
        } else {
            let message = "nothing is denied by what this is said of: it is for Deny rules, and for policies and profiles with such";
            decoder.key_error(entry, field, message);
        }
    });
    action
}

/// `Drop` or `Reject`, in any case of letters, as Calico takes it.
pub(super) fn deny_action(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<DenyAction> {
    let text = decoder.text(node, path)?;
    match text.to_ascii_lowercase().as_str() {
        "drop" => Some(DenyAction::Drop),
        "reject" => Some(DenyAction::Reject),
        _ => {
            decoder.error(node, path, format!("unknown action \"{text}\": expected Drop or Reject"));
            None
        }
    }
}
