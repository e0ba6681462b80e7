//! Kernel modules: those listed in `/etc/modules`, in that order.
//!
//! A line is an absolute path within the guest, then optional module parameters; other lines are left to others, for a
//! distribution's `/etc/modules` holds names. The files are plain `.ko`; whoever packed the
//! initramfs has resolved the dependencies and unpacked what was compressed.

use std::ffi::CString;
use std::fs::File;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

const LIST: &str = "/etc/modules";

/// Loads every listed module; one that fails is a sentence. No list, no modules.
pub(crate) fn load_listed() {
    let list = match std::fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return crate::say!("cannot read {LIST}: {error}"),
    };
    for (path, parameters) in entries(&list) {
        if let Err(reason) = load(path, parameters) {
            crate::say!("cannot load the module {path}: {reason}");
        }
    }
}

fn load(path: &str, parameters: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let parameters = CString::new(parameters).map_err(|_| "its parameters hold a zero byte".to_string())?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(Errno::ENOEXEC) => Err("it is not a module of this kernel".into()),
        Err(error) => Err(error.desc().into()),
    }
}

/// The paths and parameters of a list; comments, blank lines and mere names are skipped.
fn entries(list: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = list.lines().map(str::trim).filter(|line| line.starts_with('/'));
    lines.map(|line| {
        line.split_once(char::is_whitespace).map_or((line, ""), |(path, rest)| (path, rest.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_paths_parameters_and_comments() {
        let list = "# first\n\nloop\n/lib/a.ko\n  /lib/b.ko  x=1 y=2 \n";

        assert_eq!(entries(list).collect::<Vec<_>>(), [("/lib/a.ko", ""), ("/lib/b.ko", "x=1 y=2")]);
    }
}
