//! Which kernel modules to load, in which order: those asked for, each behind what it depends on.

use std::fs;

use crate::error::{Doing, Error, Result};
use crate::job::Module;
use crate::setup::Parts;

/// Loaded in every node.
const ALWAYS: [&str; 2] = ["kvm_intel", "tun"];

/// The modules in load order. `extra` entries are `NAME` or `NAME=PARAMETERS`.
pub(crate) fn resolve(parts: &Parts, extra: &[String]) -> Result<Vec<Module>> {
    let mut wanted: Vec<(&str, &str)> = ALWAYS.map(|name| (name, "")).to_vec();
    wanted.extend(extra.iter().map(|entry| entry.split_once('=').unwrap_or((entry, ""))));
    let mut order = Vec::new();
    for (name, _) in &wanted {
        add(parts, name, &mut order)?;
    }
    for (name, parameters) in wanted {
        if let Some(module) = order.iter_mut().find(|m| same(&m.file, name)) {
            parameters.clone_into(&mut module.parameters);
        }
    }
    Ok(order)
}

fn add(parts: &Parts, name: &str, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| same(&module.file, name)) {
        return Ok(());
    }
    let dashed = name.replace('_', "-");
    let files = [format!("{name}.ko"), format!("{dashed}.ko"), format!("{}.ko", name.replace('-', "_"))];
    let Some(file) = files.into_iter().find(|file| parts.module(file).is_file()) else {
        return Err(Error::NoModule(name.to_owned()));
    };
    let path = parts.module(&file);
    let content = fs::read(&path).on("read", &path)?;
    for needed in depends(&content) {
        add(parts, &needed, order)?;
    }
    order.push(Module { file, parameters: String::new() });
    Ok(())
}

/// The kernel treats `-` and `_` in module names as one.
fn same(file: &str, name: &str) -> bool {
    file.trim_end_matches(".ko").replace('-', "_") == name.replace('-', "_")
}

/// The `depends=` entry of a module's `.modinfo` section: NUL-terminated `key=value` strings.
fn depends(module: &[u8]) -> Vec<String> {
    let names = module.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(names.unwrap_or_default());
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::kernel::Placement;

    #[test]
    fn modules_come_behind_what_they_depend_on_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("modules")).unwrap();
        let files = [
            ("irqbypass", ""),
            ("kvm", "irqbypass"),
            ("kvm-intel", "kvm"),
            ("tun", ""),
            ("vhost_net", "tun,vhost"),
            ("vhost", ""),
        ];
        for (name, depends) in files {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(dir.path().join(format!("modules/{name}.ko")), content).unwrap();
        }
        let parts = Parts {
            bochs: dir.path().to_owned(),
            machine: dir.path().to_owned(),
            kernel: Placement { load: 0, end: 0, entry: 0 },
            release: String::new(),
        };
        let order = resolve(&parts, &["vhost-net".to_owned(), "kvm_intel=ept=0 vpid=0".to_owned()]).unwrap();
        let names: Vec<&str> = order.iter().map(|m| m.file.as_str()).collect();
        assert_eq!(names, ["irqbypass.ko", "kvm.ko", "kvm-intel.ko", "tun.ko", "vhost.ko", "vhost_net.ko"]);
        assert_eq!(order[2].parameters, "ept=0 vpid=0");
        assert!(matches!(resolve(&parts, &["nvidia".to_owned()]), Err(Error::NoModule(_))));
    }
}
