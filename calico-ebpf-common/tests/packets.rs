//! What must hold for any bytes that come in: the parsers say something about all of them and stay within them.

use calico_ebpf_common::packet::{Bytes, Cursor, ETHERNET_BYTES, Ip, Packet, V4, V6};
use proptest::prelude::*;

/// A frame that begins as one of `version` does, so that most of the parser is reached.
fn frame(version: u8) -> impl Strategy<Value = Vec<u8>> {
    let protocol =
        prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), Just(0), Just(43), Just(44), Just(60), any::<u8>()];
    let header_words = prop_oneof![4 => Just(5_u8), 1 => 0..16_u8];
    (prop::collection::vec(any::<u8>(), 0..160), protocol, header_words, any::<bool>(), any::<bool>()).prop_map(
        move |(mut bytes, protocol, words, sane, whole)| {
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let mut set = |at: usize, values: &[u8]| {
                if let Some(room) = bytes.get_mut(ETHERNET_BYTES + at..ETHERNET_BYTES + at + values.len()) {
                    room.copy_from_slice(values);
                }
            };
            let rest = length.saturating_sub(ETHERNET_BYTES as u16);
            if version == 4 {
                set(0, &[0x40 | words]);
                set(9, &[protocol]);
                if sane {
                    set(2, &rest.to_be_bytes());
                }
                if whole {
                    set(6, &[0, 0]);
                }
            } else {
                set(0, &[0x60]);
                set(6, &[protocol]);
                if sane {
                    set(4, &rest.saturating_sub(40).to_be_bytes());
                }
            }
            bytes
        },
    )
}

fn parse<F: Ip>(frame: &[u8]) -> Option<Packet<F>> {
    F::parse(&Bytes(frame), u32::try_from(frame.len()).expect("a short frame")).ok()
}

fn check<F: Ip>(frame: &[u8]) -> Result<(), TestCaseError>
where
    F::Key: PartialEq + std::fmt::Debug,
    F::Addr: PartialEq,
{
    let Some(packet) = parse::<F>(frame) else { return Ok(()) };
    // Both directions find the same entry, from opposite ends.
    let ports = packet.transport.key_ports();
    let (key, source_is_a) = packet.key();
    let (reverse, source_is_b) = F::key(&packet.destination, &packet.source, packet.protocol, [ports[1], ports[0]]);
    prop_assert_eq!(&key, &reverse);
    prop_assert!(source_is_a != source_is_b || packet.source == packet.destination && ports[0] == ports[1]);
    prop_assert!(F::from_victim(&F::to_victim(&key)) == Some(key));
    // What an error quotes lies within the frame, too.
    if F::quoted(&Bytes(frame), packet.transport_at).is_some() {
        prop_assert!(Bytes(frame).far::<[u8; 8]>(packet.transport_at).is_some());
    }
    // Without its last bytes it is refused, or it is the same flow: nothing behind the end has a say.
    for end in ETHERNET_BYTES..frame.len() {
        if let Some(shorter) = parse::<F>(&frame[..end]) {
            prop_assert!(shorter.key().0 == packet.key().0 || shorter.kind != packet.kind, "{} bytes", end);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_bytes_as_ipv4(frame in frame(4)) {
        check::<V4>(&frame)?;
    }

    #[test]
    fn any_bytes_as_ipv6(frame in frame(6)) {
        check::<V6>(&frame)?;
    }
}
