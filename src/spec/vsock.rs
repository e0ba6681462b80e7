//! The vsock device as it was typed: `cid=3,path=/run/vm.vsock`, or the same keys in YAML.

use std::path::PathBuf;

use serde::Deserialize;

use super::config::Given;
use super::error::{Problem, SpecError};
use super::options;
use super::plan::{VsockHost, VsockPlan};

/// The keys it has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 4] = ["cid", "path", "connections", "vhost"];

/// The guest's address when nothing is said: the first that is free.
const DEFAULT_CID: u32 = 3;
/// Connections at the same time when nothing is said.
const DEFAULT_CONNECTIONS: u32 = 4096;
/// The most anybody may ask for.
const MAX_CONNECTIONS: u32 = 65536;
/// `sun_path` less its NUL, and less the longest `_<port>` that goes behind it.
const MAX_PATH: usize = 107 - "_4294967295".len();

/// What was said about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VsockConfig {
    /// The guest's address.
    pub cid: Option<String>,
    /// The Unix socket the host's programs connect to; those the guest reaches are at `<path>_<port>`.
    pub path: PathBuf,
    /// How many connections there may be at the same time.
    pub connections: Option<String>,
    /// The other end is the node's own AF_VSOCK; there is no path then.
    pub vhost: bool,
}

impl VsockConfig {
    /// Reads `--vsock`'s value. Its first part may be a path alone.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Vsock { text: text.to_owned(), reason };
        let mut vsock = Self::default();
        for (key, value) in options::pairs(text, "path").map_err(refuse)? {
            match key {
                "cid" => vsock.cid = Some(value.to_owned()),
                "path" => vsock.path = value.into(),
                "connections" => vsock.connections = Some(value.to_owned()),
                "vhost" => {
                    let wrong = |_| refuse(format!("`vhost` is true or false, not `{value}`"));
                    vsock.vhost = value.parse().map_err(wrong)?;
                }
                _ => return Err(refuse(super::yaml::unknown_key(key, &KEYS))),
            }
        }
        Ok(vsock)
    }

    /// Which keys are missing or exclude each other, if any are.
    fn fault(&self) -> Option<String> {
        let cid = self.cid.as_deref().unwrap_or("3");
        match (self.path.as_os_str().is_empty(), self.vhost) {
            (true, false) => Some(format!(
                "has no path: write cid={cid},path=/run/nestling/vm.vsock for Unix sockets, or cid=N,vhost=true for the node's AF_VSOCK"
            )),
            (false, true) => Some(format!(
                "has a path and vhost=true, which exclude each other: write cid={cid},path={} for Unix sockets, or \
                 cid={cid},vhost=true for the node's AF_VSOCK",
                self.path.display()
            )),
            (true, true) if self.cid.is_none() => Some(
                "has no cid: with vhost=true all VMs of the node share one set of cids, so give it one that no other has, \
                 for example cid=7,vhost=true"
                    .to_owned(),
            ),
            (true, true) if self.connections.is_some() => Some(
                "has `connections` and vhost=true: the node's kernel has no such limit, so leave `connections` out"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Checks what was said.
pub(super) fn plan(given: &Given<VsockConfig>) -> Result<VsockPlan, SpecError> {
    let vsock = &given.value;
    if let Some(reason) = vsock.fault() {
        return Err(given.refuse(Problem::VsockValue { reason }));
    }
    let number = |text: &Option<String>, default: u32, least: u32, most: u32, what: &'static str| match text {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(given.refuse(Problem::VsockNumber { text: text.clone(), what, least, most })),
        },
    };
    // 0 and 1 have meanings of their own, 2 is the host, and the last one means any.
    let cid = number(&vsock.cid, DEFAULT_CID, 3, u32::MAX - 1, "a guest's cid")?;
    if vsock.vhost {
        return Ok(VsockPlan { cid, host: VsockHost::Kernel });
    }
    let connections =
        number(&vsock.connections, DEFAULT_CONNECTIONS, 1, MAX_CONNECTIONS, "a number of connections")?;
    let (path, length) = (vsock.path.clone(), vsock.path.as_os_str().len());
    if path.file_name().is_none() {
        let (what, found, wanted) = ("vsock path", "no file name", "a path such as /run/nestling/vm.vsock");
        return Err(given.refuse(Problem::WrongKind { what, path, found, wanted }));
    }
    if length > MAX_PATH {
        return Err(given.refuse(Problem::VsockPathTooLong { path, length }));
    }
    Ok(VsockPlan { cid, host: VsockHost::Sockets { path, connections } })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cid, and what is said of Unix sockets.
    fn sockets(text: &str) -> (u32, Option<(PathBuf, u32)>) {
        let vsock = planned(text).unwrap();
        let sockets = match vsock.host {
            VsockHost::Sockets { path, connections } => Some((path, connections)),
            VsockHost::Kernel => None,
        };
        (vsock.cid, sockets)
    }

    fn planned(text: &str) -> Result<VsockPlan, String> {
        let config = VsockConfig::parse(text).map_err(|problem| problem.to_string())?;
        plan(&Given::by_flag("--vsock", config)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_alone_is_enough() {
        assert_eq!(sockets("/run/v.sock"), (3, Some(("/run/v.sock".into(), 4096))));
    }

    #[test]
    fn every_key_is_read_up_to_its_limits() {
        let vsock = sockets("cid=4294967294,path=v,connections=65536");
        assert_eq!(vsock, (u32::MAX - 1, Some(("v".into(), 65536))));
        assert_eq!(sockets("cid=7,vhost=true"), (7, None));
    }

    #[test]
    fn what_cannot_be_used_says_why_and_what_to_write() {
        let long = "p".repeat(97);
        for (text, wanted) in [
            ("cid=5", "--vsock: the vsock device has no path: write cid=5,path=/run/nestling/vm.vsock for"),
            ("path=/,cid=3", "no file name"),
            ("path=v,cid=2", "--vsock: `2` is not a guest's cid: write 3 to 4294967294"),
            ("path=v,cid=4294967295", "write 3 to 4294967294"),
            ("path=v,cid=-1", "write 3 to 4294967294"),
            ("path=v,connections=0", "`0` is not a number of connections: write 1 to 65536"),
            ("path=v,paths=5", "there is no key `paths` (did you mean `path`?)"),
            ("path=v,cid", "`cid` has no value"),
            (
                "cid=7,vhost=true,path=v",
                "exclude each other: write cid=7,path=v for Unix sockets, or cid=7,vhost=true",
            ),
            ("vhost=true", "has no cid: with vhost=true all VMs of the node share one set"),
            ("cid=7,vhost=true,connections=9", "leave `connections` out"),
            ("vhost=1", "true or false"),
            (long.as_str(), "has 97 bytes, and at most 96"),
        ] {
            let message = planned(text).expect_err(text);
            assert!(message.contains(wanted), "{text}: {message}");
        }
        assert!(planned(&"p".repeat(96)).is_ok());
    }
}
