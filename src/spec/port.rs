//! One named character port as it was typed: `name=agent,path=/run/agent.sock`, or the same keys in YAML.

use std::path::PathBuf;

use super::config::Given;
use super::error::{Problem, SpecError};
use super::options;
use super::plan::PortPlan;

/// The keys a port has, for messages and for spelling hints.
pub(super) const KEYS: [&str; 2] = ["name", "path"];
/// The most ports of one VM.
const MAX_PORTS: usize = 15;
/// The longest name, in bytes.
const MAX_NAME: usize = 64;
/// `sun_path` less its NUL.
const MAX_SOCKET_PATH: usize = 107;

/// What was said about one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortConfig {
    /// What the guest calls it.
    pub name: String,
    /// The Unix socket on the host.
    pub path: PathBuf,
}

impl PortConfig {
    /// Reads `--port`'s value. Its first part may be a name alone.
    ///
    /// # Errors
    /// When a key is unknown, repeated or has no value, or name or path is missing.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |reason: String| Problem::Port { text: text.to_owned(), reason };
        let mut port = Self::default();
        for (key, value) in options::pairs(text, "name").map_err(refuse)? {
            match key {
                "name" => value.clone_into(&mut port.name),
                "path" => port.path = value.into(),
                _ => return Err(refuse(super::yaml::unknown_key(key, &KEYS))),
            }
        }
        if port.name.is_empty() {
            return Err(refuse("it has no name".to_owned()));
        }
        if port.path.as_os_str().is_empty() {
            return Err(refuse("it has no path".to_owned()));
        }
        Ok(port)
    }

    /// What is wrong with it, if anything is.
    fn fault(&self) -> Option<String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let path_bytes = self.path.as_os_str().len();
        if self.name.is_empty() {
            Some("its name is empty: the guest finds it by that".to_owned())
        } else if self.name.len() > MAX_NAME || !self.name.chars().all(is_plain) || self.name.starts_with('.')
        {
            Some(format!(
                "a name is at most {MAX_NAME} letters, digits, `.`, `_` and `-`, and begins with no dot"
            ))
        } else if self.path.file_name().is_none() {
            Some(format!(
                "its path `{}` names no file: give a path such as /run/nestling/agent.sock",
                self.path.display()
            ))
        } else if path_bytes > MAX_SOCKET_PATH {
            Some(format!(
                "its path has {path_bytes} bytes, and a Unix socket's has at most {MAX_SOCKET_PATH}: choose a shorter one"
            ))
        } else {
            None
        }
    }
}

/// Checks every port, alone and beside the others.
pub(super) fn plan(ports: &[Given<PortConfig>]) -> Result<Vec<PortPlan>, SpecError> {
    for (index, given) in ports.iter().enumerate() {
        let PortConfig { name, path } = &given.value;
        let before = ports.get(..index).unwrap_or_default();
        let reason = given.value.fault().or_else(|| {
            if before.iter().any(|other| other.value.name == *name) {
                Some("another port has the same name: give this one its own".to_owned())
            } else if before.iter().any(|other| other.value.path == *path) {
                Some("another port has the same path: give this one its own".to_owned())
            } else {
                (index >= MAX_PORTS).then(|| format!("a VM has at most {MAX_PORTS} ports"))
            }
        });
        if let Some(reason) = reason {
            let port = if name.is_empty() { String::new() } else { format!(" `{name}`") };
            return Err(given.refuse(Problem::PortValue { port, reason }));
        }
    }
    let plan = |given: &Given<PortConfig>| PortPlan {
        name: given.value.name.clone(),
        path: given.value.path.clone(),
    };
    Ok(ports.iter().map(plan).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(texts: &[&str]) -> Result<Vec<PortPlan>, String> {
        let given = |text: &&str| {
            PortConfig::parse(text)
                .map(|port| Given::by_flag("--port", port))
                .map_err(|error| error.to_string())
        };
        let ports: Vec<_> = texts.iter().map(given).collect::<Result<_, _>>()?;
        plan(&ports).map_err(|error| error.to_string())
    }

    #[test]
    fn a_port_has_a_name_and_a_path() {
        let ports = check(&["name=agent.0,path=/run/a", "log,path=/run/b"]).unwrap();
        assert_eq!(ports[0], PortPlan { name: "agent.0".into(), path: "/run/a".into() });
        assert_eq!(ports[1], PortPlan { name: "log".into(), path: "/run/b".into() });
    }

    #[test]
    fn what_cannot_be_a_port_says_why() {
        let long = format!("a,path=/{}", "x".repeat(107));
        let name = format!("{},path=/a", "x".repeat(65));
        for (texts, part) in [
            (vec!["path=/a"], "no name"),
            (vec!["a"], "`a` does not describe a port: it has no path; write for example name=agent,path="),
            (vec!["a,path=/"], "--port: the port `a`: its path `/` names no file"),
            (vec!["a/b,path=/a"], "letters, digits"),
            (vec!["..,path=/a"], "no dot"),
            (vec![name.as_str()], "at most 64"),
            (vec![long.as_str()], "at most 107"),
            (vec!["a,paht=/a"], "did you mean `path`"),
            (vec!["a,path=/a", "a,path=/b"], "same name"),
            (vec!["a,path=/a", "b,path=/a"], "same path"),
        ] {
            let message = check(&texts).expect_err(part);
            assert!(message.contains(part), "{texts:?}: {message}");
        }
        let many: Vec<String> = (0..16).map(|n| format!("p{n},path=/p{n}")).collect();
        let message = check(&many.iter().map(String::as_str).collect::<Vec<_>>()).expect_err("too many");
        assert!(message.starts_with("--port: ") && message.contains("at most 15 ports"), "{message}");
    }
}
