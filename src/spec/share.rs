//! One shared directory as it was typed: `tag=data,dir=/srv/data,readonly=true`, or the same keys in YAML.

use std::path::PathBuf;

use serde::Deserialize;

use super::config::Given;
use super::error::{Problem, SpecError};
use super::files::check_directory;
use super::options;
use super::plan::{ShareCache, SharePlan, ShareServer};

/// The keys a share has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 5] = ["tag", "dir", "readonly", "cache", "socket"];
/// Bytes of the tag in the device's configuration structure (virtio 1.2 §5.11.4).
const MAX_TAG: usize = 36;

/// What was said about one share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShareConfig {
    /// What the guest mounts it by.
    pub tag: String,
    /// The host's directory.
    pub dir: Option<PathBuf>,
    /// The guest may only read it.
    pub readonly: bool,
    /// `auto`, `never`, `always`, or whatever was typed.
    pub cache: Option<String>,
    /// The socket of a virtiofsd that the user runs.
    pub socket: Option<PathBuf>,
}

impl ShareConfig {
    /// Reads `--share`'s value.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Share { share: format!(" `{text}`"), reason };
        let mut share = Self::default();
        for (key, value) in options::pairs(text, "tag").map_err(refuse)? {
            match key {
                "tag" => share.tag = value.to_owned(),
                "dir" => share.dir = Some(value.into()),
                "readonly" => {
                    let wrong = |_| refuse(format!("`readonly` is true or false, not `{value}`"));
                    share.readonly = value.parse().map_err(wrong)?;
                }
                "cache" => share.cache = Some(value.to_owned()),
                "socket" => share.socket = Some(value.into()),
                _ => return Err(refuse(super::yaml::unknown_key(key, &KEYS))),
            }
        }
        Ok(share)
    }

    fn cache(&self) -> Result<ShareCache, String> {
        match self.cache.as_deref() {
            None | Some("auto") => Ok(ShareCache::Auto),
            Some("never") => Ok(ShareCache::Never),
            Some("always") => Ok(ShareCache::Always),
            Some(other) => Err(format!("`cache` is auto, never or always, not `{other}`")),
        }
    }

    fn server(&self) -> Result<ShareServer, String> {
        match (&self.dir, &self.socket) {
            (Some(dir), None) => Ok(ShareServer::Directory {
                path: dir.clone(),
                readonly: self.readonly,
                cache: self.cache()?,
            }),
            (None, Some(_)) if self.readonly || self.cache.is_some() => {
                Err("`readonly` and `cache` are said to the virtiofsd behind `socket`, when it is started"
                    .to_owned())
            }
            (None, Some(socket)) => Ok(ShareServer::Socket(socket.clone())),
            (Some(_), Some(_)) => {
                Err("it has both `dir` and `socket`: a virtiofsd of your own knows its directory".to_owned())
            }
            (None, None) => Err("it has no directory (`dir`), and no `socket` of a virtiofsd".to_owned()),
        }
    }
}

/// Checks every share, and that no two have one tag.
pub(super) fn plans(shares: &[Given<ShareConfig>]) -> Result<Vec<SharePlan>, SpecError> {
    let mut plans: Vec<SharePlan> = Vec::new();
    for given in shares {
        let tag = given.value.tag.clone();
        let share = if tag.is_empty() { String::new() } else { format!(" `{tag}`") };
        let refuse = |reason: String| given.refuse(Problem::Share { share: share.clone(), reason });
        if tag.is_empty() {
            return Err(refuse("it has no `tag`".to_owned()));
        }
        if tag.contains('\0') {
            return Err(refuse("its `tag` has a zero byte in it".to_owned()));
        }
        if tag.len() > MAX_TAG {
            return Err(refuse(format!("its tag has {} bytes, and a tag has at most {MAX_TAG}", tag.len())));
        }
        if plans.iter().any(|other| other.tag == tag) {
            return Err(refuse("another share has the same tag".to_owned()));
        }
        let server = given.value.server().map_err(refuse)?;
        if let ShareServer::Directory { path, .. } = &server {
            check_directory(given, path)?;
        }
        plans.push(SharePlan { tag, server });
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(texts: &[&str]) -> Result<Vec<SharePlan>, String> {
        let given = |text: &&str| ShareConfig::parse(text).map(|share| Given::by_flag("--share", share));
        let shares =
            texts.iter().map(given).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        plans(&shares).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_or_a_socket_behind_a_tag() {
        let plans = plan(&["tag=a,dir=/tmp,readonly=true,cache=never", "b,socket=/run/b.sock"]).unwrap();
        let directory =
            ShareServer::Directory { path: "/tmp".into(), readonly: true, cache: ShareCache::Never };
        assert_eq!(plans[0], SharePlan { tag: "a".into(), server: directory });
        assert_eq!(
            plans[1],
            SharePlan { tag: "b".into(), server: ShareServer::Socket("/run/b.sock".into()) }
        );
    }

    #[test]
    fn what_cannot_be_says_what_is_wrong() {
        let long = format!("tag={},dir=/tmp", "x".repeat(37));
        for (texts, part) in [
            (&["dir=/tmp"][..], "no `tag`"),
            (&["tag=a"], "no directory"),
            (&["tag=a,dir=/tmp,socket=/s"], "both"),
            (&["tag=a,socket=/s,readonly=true"], "behind `socket`"),
            (&["tag=a,dir=/tmp,cache=most"], "auto, never or always"),
            (&["tag=a,dir=/tmp,readonly=yes"], "true or false"),
            (&["tag=a,dir=/tmp,tags=b"], "did you mean `tag`"),
            (&["tag=a,dir=/tmp", "tag=a,dir=/"], "the share `a`: another share has the same tag; write"),
            (&["tag=a,dir=/no/such/directory"], "/no/such/directory cannot be opened: No such file"),
            (&["tag=a,dir=/dev/null"], "/dev/null is a character device: give a directory"),
            (&[&long], "37 bytes"),
        ] {
            let message = plan(texts).unwrap_err();
            assert!(message.contains(part), "{texts:?}: {message}");
        }
    }
}
