//! Records a machine while it is being inspected: exactly what the checks looked at, nothing else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use nix::errno::Errno;

use super::host::{CpuidLeaves, Device, Host, Identity, KvmAnswers};
use super::recorded::{ANSWERS_FILE, Answers, TreeError, in_tree};

/// A host that remembers every answer of another host.
pub struct Recorder<'a> {
    host: &'a dyn Host,
    files: RefCell<BTreeMap<String, Vec<u8>>>,
    answers: RefCell<Answers>,
}

impl<'a> Recorder<'a> {
    /// Listens to `host`.
    #[must_use]
    pub fn new(host: &'a dyn Host) -> Self {
        Self { host, files: RefCell::default(), answers: RefCell::default() }
    }

    /// Writes what was heard as a tree that [`super::RecordedHost`] can load.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, root: &Path, origin: &str) -> Result<(), TreeError> {
        for (path, content) in &*self.files.borrow() {
            write_file(&in_tree(root, path), content)?;
        }
        let answers = Answers { origin: origin.to_owned(), ..self.answers.borrow().clone() };
        let path = root.join(ANSWERS_FILE);
        let mut json = serde_json::to_vec_pretty(&answers)
            .map_err(|source| TreeError::Json { path: path.clone(), source })?;
        json.push(b'\n');
        write_file(&path, &json)
    }
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), TreeError> {
    let written =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, content));
    written.map_err(|source| TreeError::Io { path: path.to_owned(), source })
}

impl Host for Recorder<'_> {
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let answer = self.host.read(path);
        match &answer {
            Ok(content) => drop(self.files.borrow_mut().insert(path.to_owned(), content.clone())),
            // A missing file is missing in the tree, too.
            Err(Errno::ENOENT) => {}
            Err(errno) => drop(self.answers.borrow_mut().unreadable.insert(path.to_owned(), *errno as i32)),
        }
        answer
    }

    fn list(&self, dir: &str, prefix: &str) -> Result<Vec<String>, Errno> {
        let names = self.host.list(dir, prefix)?;
        self.answers.borrow_mut().listings.entry(dir.to_owned()).or_default().extend(names.iter().cloned());
        Ok(names)
    }

    fn device(&self, path: &str) -> Device {
        let device = self.host.device(path);
        self.answers.borrow_mut().devices.insert(path.to_owned(), device.clone());
        device
    }

    fn cpuid(&self) -> Vec<CpuidLeaves> {
        let leaves = self.host.cpuid();
        self.answers.borrow_mut().cpuid.clone_from(&leaves);
        leaves
    }

    fn identity(&self) -> Identity {
        let identity = self.host.identity();
        self.answers.borrow_mut().identity = identity.clone();
        identity
    }

    fn has_env(&self, name: &str) -> bool {
        let set = self.host.has_env(name);
        if set {
            self.answers.borrow_mut().env.push(name.to_owned());
        }
        set
    }

    fn kvm(&self) -> KvmAnswers {
        let answers = self.host.kvm();
        self.answers.borrow_mut().kvm = Some(answers.clone());
        answers
    }
}
