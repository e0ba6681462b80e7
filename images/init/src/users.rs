//! Users and groups, from the guest's own /etc/passwd and /etc/group. (A static program has no other name services.)

use std::io::Read;

use nestling_protocol::{Failure, FailureKind};
use nix::errno::Errno;

/// The longest file of users that is read.
const LONGEST: u64 = 4 << 20;

/// The most supplementary groups a process may have (NGROUPS_MAX).
const MOST_GROUPS: usize = 65_536;

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    groups: Vec<u32>,
    /// From /etc/passwd, if the user is there.
    pub(crate) name: Option<String>,
    pub(crate) home: Option<String>,
}

/// The two files.
struct Tables {
    passwd: String,
    group: String,
}

impl Identity {
    /// `NAME`, `UID`, `NAME:GROUP`, `UID:GID`.
    pub(crate) fn find(user: &str) -> Result<Self, Failure> {
        Tables { passwd: read("/etc/passwd"), group: read("/etc/group") }.find(user)
    }

    /// Who we are ourselves.
    pub(crate) fn own() -> Option<Self> {
        let tables = Tables { passwd: read("/etc/passwd"), group: String::new() };
        tables.user(&nix::unistd::geteuid().to_string())
    }

    /// In a child, before exec: becomes that user. System calls only.
    pub(crate) fn take_on(&self) -> Result<(), Errno> {
        // SAFETY: the kernel reads as many numbers as the array has.
        Errno::result(unsafe { libc::setgroups(self.groups.len(), self.groups.as_ptr()) })?;
        // SAFETY: an integer.
        Errno::result(unsafe { libc::setgid(self.gid) })?;
        // SAFETY: an integer.
        Errno::result(unsafe { libc::setuid(self.uid) })?;
        Ok(())
    }
}

/// A file's text; what cannot be read has no users.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read until it failed counts.
        drop(file.take(LONGEST).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Tables {
    fn find(&self, wanted: &str) -> Result<Identity, Failure> {
        let (user, group) =
            wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
        let no_such = |what: &str, name: &str| {
            Failure::new(FailureKind::NotFound, format!("the guest has no {what} {name}"))
        };
        let mut identity = match (self.user(user), user.parse()) {
            (Some(identity), _) => identity,
            // A number needs no entry.
            (None, Ok(uid)) => Identity { uid, gid: 0, groups: Vec::new(), name: None, home: None },
            (None, Err(_)) => return Err(no_such("user", user)),
        };
        if let Some(group) = group {
            identity.gid = match (self.group(group), group.parse()) {
                (Some(gid), _) | (None, Ok(gid)) => gid,
                (None, Err(_)) => return Err(no_such("group", group)),
            };
        }
        identity.groups = self.groups_of(identity.name.as_deref(), identity.gid);
        Ok(identity)
    }

    /// By name, else by number.
    fn user(&self, wanted: &str) -> Option<Identity> {
        let entries = || {
            self.passwd.lines().filter_map(|line| {
                let mut fields = line.split(':');
                let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
                let home = fields.nth(1).filter(|home| !home.is_empty()).map(String::from);
                let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
                Some(Identity { uid, gid, groups: Vec::new(), name: Some(name.into()), home })
            })
        };
        let number = wanted.parse::<u32>().ok();
        let by_name = entries().find(|entry| entry.name.as_deref() == Some(wanted));
        by_name.or_else(|| entries().find(|entry| Some(entry.uid) == number))
    }

    fn group(&self, wanted: &str) -> Option<u32> {
        self.groups().find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid)
    }

    fn groups_of(&self, user: Option<&str>, own: u32) -> Vec<u32> {
        let of_user =
            |members: &str| user.is_some_and(|user| members.split(',').any(|member| member == user));
        let others = self.groups().filter(|(_, gid, members)| *gid != own && of_user(members));
        std::iter::once(own).chain(others.map(|(_, gid, _)| gid)).take(MOST_GROUPS).collect()
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Tables {
        Tables {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:\n44:x:9:9:::\n".into(),
            group: "root:x:0:\nweb:x:34:\nlog:x:4:adm,web\nbroken:x:y:web\nadm:x:5:web\n".into(),
        }
    }

    #[test]
    fn a_name_has_its_groups_and_its_home() {
        let web = tables().find("web").unwrap();

        assert_eq!((web.uid, web.gid, web.groups), (33, 34, vec![34, 4, 5]));
        assert_eq!(web.home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn numbers_need_no_entry_but_use_it() {
        let numbers = |user: &str| tables().find(user).map(|found| (found.uid, found.gid, found.name));

        assert_eq!(numbers("33").unwrap(), (33, 34, Some("web".into())));
        assert_eq!(numbers("1000:1001").unwrap(), (1000, 1001, None));
        assert_eq!(numbers("44").unwrap(), (9, 9, Some("44".into())), "a name comes before a number");
        assert_eq!(numbers("root:log").unwrap(), (0, 4, Some("root".into())));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(tables().find("nobody").unwrap_err().message, "the guest has no user nobody");
        assert_eq!(tables().find("root:wheel").unwrap_err().message, "the guest has no group wheel");
        assert_eq!(tables().find("").unwrap_err().kind, FailureKind::NotFound);
    }
}
