//! One network interface as it was typed: `tap=tap0,mac=02:00:00:00:00:01,queues=2`, or the same keys in YAML; and what it
//! means.

use serde::Deserialize;

use super::config::Given;
use super::error::{Problem, SpecError};
use super::options;
use super::plan::{NetPlan, RateLimit, TapPlan, VhostPlan};
use super::size::parse_size;
use crate::spec::plan::DirectionPlan;

/// The keys an interface has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 16] = [
    "mode",
    "tap",
    "name",
    "fd",
    "mac",
    "mtu",
    "queues",
    "vhost",
    "rx-bytes-per-second",
    "rx-bytes-burst",
    "rx-packets-per-second",
    "rx-packets-burst",
    "tx-bytes-per-second",
    "tx-bytes-burst",
    "tx-packets-per-second",
    "tx-packets-burst",
];

/// The modes there will be; `tap` is there.
const LATER: [&str; 4] = ["pod-ip", "nat", "user", "none"];
/// What there is today.
const AVAILABLE: &str = "today an interface is a tap, so write `tap` for a new one or tap=NAME for yours, and route or bridge it \
     in the pod; without --net the guest has no network";
/// The most queue pairs, as many as vCPUs.
const MAX_QUEUES: u16 = 32;
/// The least MTU of IPv4 (RFC 791), and the most a tap has.
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

/// What was said about one interface. Everything is text until it is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NetConfig {
    /// `tap`, or a mode that is planned.
    pub mode: Option<String>,
    /// A tap's name: short for `mode=tap,name=`.
    pub tap: Option<String>,
    /// A tap's name.
    pub name: Option<String>,
    /// A tap's inherited descriptor.
    pub fd: Option<String>,
    /// The guest's address.
    pub mac: Option<String>,
    /// The largest packet.
    pub mtu: Option<String>,
    /// Queue pairs.
    pub queues: Option<String>,
    /// `auto`, `on` or `off`: whether the kernel moves the frames.
    pub vhost: Option<String>,
    /// A size: bytes the guest receives in a second.
    pub rx_bytes_per_second: Option<String>,
    /// A size: bytes beyond a second of them, saved up in a quiet time.
    pub rx_bytes_burst: Option<String>,
    /// Frames the guest receives in a second.
    pub rx_packets_per_second: Option<String>,
    /// Frames beyond a second of them, saved up in a quiet time.
    pub rx_packets_burst: Option<String>,
    /// The same of what it transmits.
    pub tx_bytes_per_second: Option<String>,
    /// The same of what it transmits.
    pub tx_bytes_burst: Option<String>,
    /// The same of what it transmits.
    pub tx_packets_per_second: Option<String>,
    /// The same of what it transmits.
    pub tx_packets_burst: Option<String>,
}

impl NetConfig {
    /// Reads `--net`'s value. Its first part may be a mode alone.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Net { text: text.to_owned(), reason };
        let mut net = Self::default();
        for (key, value) in options::pairs(text, "mode").map_err(refuse)? {
            let place = net.place(key).ok_or_else(|| refuse(super::yaml::unknown_key(key, &KEYS)))?;
            *place = Some(value.to_owned());
        }
        Ok(net)
    }

    fn place(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "mode" => &mut self.mode,
            "tap" => &mut self.tap,
            "name" => &mut self.name,
            "fd" => &mut self.fd,
            "mac" => &mut self.mac,
            "mtu" => &mut self.mtu,
            "queues" => &mut self.queues,
            "vhost" => &mut self.vhost,
            "rx-bytes-per-second" => &mut self.rx_bytes_per_second,
            "rx-bytes-burst" => &mut self.rx_bytes_burst,
            "rx-packets-per-second" => &mut self.rx_packets_per_second,
            "rx-packets-burst" => &mut self.rx_packets_burst,
            "tx-bytes-per-second" => &mut self.tx_bytes_per_second,
            "tx-bytes-burst" => &mut self.tx_bytes_burst,
            "tx-packets-per-second" => &mut self.tx_packets_per_second,
            "tx-packets-burst" => &mut self.tx_packets_burst,
            _ => return None,
        })
    }

    /// The kernel holds no frame back: limits are ours to keep.
    fn vhost_plan(&self, limits: &[&DirectionPlan]) -> Result<VhostPlan, String> {
        let limited = limits.iter().any(|limit| limit.bytes.is_some() || limit.packets.is_some());
        match self.vhost.as_deref() {
            Some("on" | "true") if limited => {
                Err("with `vhost=on` the kernel moves the frames, and it keeps no limits: leave out either"
                    .to_owned())
            }
            None | Some("auto") if limited => Ok(VhostPlan::Off),
            None | Some("auto") => Ok(VhostPlan::Auto),
            Some("on" | "true") => Ok(VhostPlan::On),
            Some("off" | "false") => Ok(VhostPlan::Off),
            Some(other) => Err(format!("`vhost` is auto, on or off, not `{other}`")),
        }
    }

    fn plan(&self, index: usize) -> Result<NetPlan, String> {
        let direction = |name, bytes: [&Option<String>; 2], packets: [&Option<String>; 2]| {
            Ok::<_, String>(DirectionPlan {
                bytes: rate(&format!("{name}-bytes"), bytes)?,
                packets: rate(&format!("{name}-packets"), packets)?,
            })
        };
        let receive = direction(
            "rx",
            [&self.rx_bytes_per_second, &self.rx_bytes_burst],
            [&self.rx_packets_per_second, &self.rx_packets_burst],
        )?;
        let transmit = direction(
            "tx",
            [&self.tx_bytes_per_second, &self.tx_bytes_burst],
            [&self.tx_packets_per_second, &self.tx_packets_burst],
        )?;
        let vhost = self.vhost_plan(&[&receive, &transmit])?;
        Ok(NetPlan {
            tap: self.tap_plan()?,
            mac: match &self.mac {
                Some(text) => mac(text)?,
                None => derived_mac(&machine_name(), index),
            },
            mtu: number(self.mtu.as_deref(), "mtu", MTU)?,
            queues: number(self.queues.as_deref(), "queues", 1..=MAX_QUEUES)?.unwrap_or(1),
            receive,
            transmit,
            vhost,
        })
    }

    fn tap_plan(&self) -> Result<TapPlan, String> {
        match self.mode.as_deref() {
            Some("tap") => {}
            Some(mode) if LATER.contains(&mode) => {
                return Err(format!("mode={mode} is planned and not there yet: {AVAILABLE}"));
            }
            Some(mode) => return Err(format!("there is no mode `{mode}`: {AVAILABLE}")),
            None if self.tap.is_none() => {
                return Err(format!("the interface has no kind: {AVAILABLE}"));
            }
            None => {}
        }
        match [&self.tap, &self.name, &self.fd] {
            [Some(name), None, None] | [None, Some(name), None] => {
                let valid = (1..=15).contains(&name.len())
                    && !name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace());
                if valid {
                    return Ok(TapPlan::Named(name.clone()));
                }
                Err(format!(
                    "`{name}` cannot be an interface's name: 1 to 15 bytes, no slash, colon, percent sign or blank"
                ))
            }
            [None, None, Some(fd)] => match fd.parse() {
                Ok(fd @ 3..=i32::MAX) if self.queues.as_deref().is_none_or(|queues| queues == "1") => {
                    Ok(TapPlan::Descriptor(fd))
                }
                Ok(3..) => Err("a descriptor is one queue: leave out `queues`".to_owned()),
                _ => Err(format!("`fd` is a descriptor from 3 up, not `{fd}`")),
            },
            [None, None, None] => Ok(TapPlan::New),
            _ => Err("`tap`, `name` and `fd` exclude each other: give one of them".to_owned()),
        }
    }
}

/// Checks everything that was said about the interface number `index`.
pub(super) fn net_plan(given: &Given<NetConfig>, index: usize) -> Result<NetPlan, SpecError> {
    given.value.plan(index).map_err(|reason| given.refuse(Problem::NetValue { reason }))
}

fn number(
    text: Option<&str>,
    key: &str,
    range: std::ops::RangeInclusive<u16>,
) -> Result<Option<u16>, String> {
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(format!("`{key}` is a number from {} to {}, not `{text}`", range.start(), range.end())),
    }
}

/// A rate, and what may be saved up beyond a second of it.
fn rate(key: &str, [per_second, burst]: [&Option<String>; 2]) -> Result<Option<RateLimit>, String> {
    let read = |text: &Option<String>, part: &str| match text {
        None => Ok(None),
        Some(text) => match parse_size(text) {
            Some(number @ 1..) => Ok(Some(number)),
            _ => Err(format!("`{key}-{part}` is a number from 1 up, such as 10M, not `{text}`")),
        },
    };
    match (read(per_second, "per-second")?, read(burst, "burst")?) {
        (None, None) => Ok(None),
        (Some(per_second), burst) => Ok(Some(RateLimit { per_second, burst: burst.unwrap_or(0) })),
        (None, Some(_)) => Err(format!("`{key}-burst` needs `{key}-per-second`")),
    }
}

/// An Ethernet address of one machine.
fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("`mac` is six bytes such as 02:00:00:00:00:01, not `{text}`");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || text.contains('+') {
        return Err(wrong());
    }
    if mac[0] & 1 != 0 {
        return Err(format!("`{text}` is a group's address: the first byte is even, such as 02"));
    }
    if mac == [0; 6] {
        return Err("an address of zeros is nobody's: give another".to_owned());
    }
    Ok(mac)
}

/// In a pod, the pod's name.
fn machine_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The same address for the same name and interface, whenever and wherever: locally administered, of one machine. FNV-1a.
fn derived_mac(name: &str, index: usize) -> [u8; 6] {
    let text = format!("{name}/{index}");
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    let [first, b, c, d, e, f, ..] = hash.to_be_bytes();
    [first & 0xfe | 2, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<NetPlan, String> {
        let given = Given::by_flag("--net", NetConfig::parse(text).map_err(|problem| problem.to_string())?);
        net_plan(&given, 0).map_err(|error| error.to_string())
    }

    #[test]
    fn an_interface_is_a_tap_of_some_kind() {
        for (text, tap) in [
            ("tap", TapPlan::New),
            ("mode=tap", TapPlan::New),
            ("mode=tap,name=t0", TapPlan::Named("t0".into())),
            ("tap=t0", TapPlan::Named("t0".into())),
            ("tap,fd=7", TapPlan::Descriptor(7)),
        ] {
            assert_eq!(plan(text).unwrap().tap, tap, "{text}");
        }
    }

    #[test]
    fn the_kernel_moves_frames_unless_a_limit_is_ours_to_keep() {
        for (text, vhost) in [
            ("tap", VhostPlan::Auto),
            ("tap,vhost=on", VhostPlan::On),
            ("tap,vhost=off", VhostPlan::Off),
            ("tap,tx-bytes-per-second=1M", VhostPlan::Off),
        ] {
            assert_eq!(plan(text).unwrap().vhost, vhost, "{text}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "tap=t0,mac=02:00:00:aA:00:01,mtu=9000,queues=4,rx-bytes-per-second=10M,rx-bytes-burst=1M,\
                    tx-packets-per-second=500";
        let plan = plan(text).unwrap();
        assert_eq!((plan.mac, plan.mtu, plan.queues), ([2, 0, 0, 0xaa, 0, 1], Some(9000), 4));
        let receive = RateLimit { per_second: 10 << 20, burst: 1 << 20 };
        assert_eq!(plan.receive, DirectionPlan { bytes: Some(receive), packets: None });
        let transmit = RateLimit { per_second: 500, burst: 0 };
        assert_eq!(plan.transmit, DirectionPlan { bytes: None, packets: Some(transmit) });
        let mut net = NetConfig::default();
        assert!(KEYS.iter().all(|key| net.place(key).is_some()));
    }

    #[test]
    fn what_cannot_be_read_says_which_part() {
        for (text, part) in [
            ("nat", "mode=nat is planned and not there yet: today an interface is a tap, so write `tap`"),
            ("pod-ip", "mode=pod-ip is planned"),
            ("bridge", "no mode `bridge`"),
            ("mac=02:00:00:00:00:01", "the interface has no kind: today"),
            ("tap=t0,name=t1", "exclude each other"),
            ("tap=sixteen-letters-", "1 to 15 bytes"),
            ("tap=a/b", "1 to 15 bytes"),
            ("tap,fd=2", "from 3 up"),
            ("tap,fd=3,queues=2", "one queue"),
            ("tap,queues=0", "from 1 to 32"),
            ("tap,queues=33", "from 1 to 32"),
            ("tap,mtu=67", "from 68 to 65521"),
            ("tap,mac=01:00:00:00:00:01", "group's address"),
            ("tap,mac=00:00:00:00:00:00", "nobody's"),
            ("tap,mac=2:0:0:0:0:1", "six bytes"),
            ("tap,mac=02:00:00:00:00:01:02", "six bytes"),
            ("tap,mac=02:00:00:00:00:+1", "six bytes"),
            ("tap,rx-bytes-per-second=0", "from 1 up"),
            ("tap,tx-packets-burst=1", "needs `tx-packets-per-second`"),
            ("tap,mak=1", "did you mean `mac`"),
            ("tap,mtu", "`mtu` has no value"),
            ("tap,vhost=yes", "auto, on or off"),
            ("tap,vhost=on,rx-bytes-per-second=1M", "keeps no limits"),
        ] {
            let message = plan(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_derived_address_is_stable_and_of_one_machine() {
        assert_eq!(derived_mac("pod-a", 0), derived_mac("pod-a", 0));
        assert_eq!(derived_mac("pod-a", 0), [0x9e, 0x42, 0x10, 0x1f, 0x7e, 0xe6]);
        let names = ["pod-a", "pod-b", "pod-c", ""];
        let macs: std::collections::HashSet<_> =
            names.iter().flat_map(|name| (0..4).map(|index| derived_mac(name, index))).collect();
        assert_eq!(macs.len(), 16);
        assert!(macs.iter().all(|mac| mac[0] & 3 == 2));
    }
}
