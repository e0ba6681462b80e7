//! Who gets a socket path, and what is left afterwards.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;

use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_claim_is_private_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("deep/er/n.sock");
    let claim = claim(&path).expect("claims");
    assert_eq!(fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o600);
    drop(claim);
    assert_eq!(names(&dir.path().join("deep/er")), Vec::<String>::new());
}

#[tokio::test]
async fn a_second_claim_names_the_first_s_process_and_disturbs_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("n.sock");
    let first = claim(&path).expect("claims");
    let refusal = claim(&path).expect_err("in use").to_string();
    assert!(refusal.contains(&format!("in use by process {}", std::process::id())), "{refusal}");
    assert_eq!(names(dir.path()), ["n.sock", "n.sock.lock"]);
    drop(first);
}

#[tokio::test]
async fn a_live_listener_without_a_lock_is_respected() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("n.sock");
    let _listener = StdListener::bind(&path).expect("bind");
    let refusal = claim(&path).expect_err("in use").to_string();
    assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
    assert_eq!(names(dir.path()), ["n.sock"]);
}

#[tokio::test]
async fn a_dead_instance_s_socket_and_lock_are_replaced() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("n.sock");
    drop(StdListener::bind(&path).expect("bind"));
    fs::write(lock_path_of(&path), "999999").expect("dead lock");
    drop(claim(&path).expect("claims"));
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_is_never_replaced() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("n.sock");
    fs::write(&path, "precious").expect("file");
    let refusal = claim(&path).expect_err("a file").to_string();
    assert!(refusal.contains("is not a socket"), "{refusal}");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    assert_eq!(names(dir.path()), ["n.sock"]);
}

#[test]
fn of_many_starters_one_wins() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("n.sock");
    let winners = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
                let _inside = runtime.enter();
                if let Ok(claim) = claim(&path) {
                    winners.lock().expect("winners").push(claim);
                }
            });
        }
    });
    assert_eq!(winners.into_inner().expect("winners").len(), 1);
}
