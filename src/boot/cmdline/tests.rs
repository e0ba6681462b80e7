use super::*;

const VIRTIO: CmdlineFacts =
    CmdlineFacts { console: ConsoleKind::Virtio, has_initrd: false, first_disk_readonly: None };

fn append(facts: &CmdlineFacts, text: &str) -> String {
    compute(facts, &CmdlinePlan::Append(text.to_owned())).unwrap()
}

fn words(cmdline: &str) -> Vec<&str> {
    cmdline.split(' ').collect()
}

#[test]
fn the_console_is_the_one_the_machine_has() {
    let virtio = append(&VIRTIO, "");
    assert!(words(&virtio).contains(&"console=hvc0") && words(&virtio).contains(&"8250.nr_uarts=0"));
    let serial = append(&CmdlineFacts { console: ConsoleKind::Serial, ..VIRTIO }, "");
    assert!(words(&serial).contains(&"console=ttyS0") && words(&serial).contains(&"8250.nr_uarts=1"));
    assert!(!serial.contains("hvc0"));
}

#[test]
fn a_panic_can_be_told_from_a_reboot() {
    let cmdline = append(&VIRTIO, "");
    assert!(words(&cmdline).contains(&"panic=-1") && words(&cmdline).contains(&"reboot=panic_warm"));
}

#[test]
fn the_first_disk_is_root_unless_an_initrd_decides() {
    assert!(!append(&VIRTIO, "").contains("root="));
    let writable = CmdlineFacts { first_disk_readonly: Some(false), ..VIRTIO };
    assert!(append(&writable, "").ends_with(" root=/dev/vda rw"));
    let readonly = CmdlineFacts { first_disk_readonly: Some(true), ..VIRTIO };
    assert!(append(&readonly, "").ends_with(" root=/dev/vda ro"));
    assert!(!append(&CmdlineFacts { has_initrd: true, ..writable }, "").contains("root="));
}

#[test]
fn the_users_text_comes_last_and_so_does_what_it_gives_to_init() {
    let facts = CmdlineFacts { first_disk_readonly: Some(false), ..VIRTIO };
    assert!(
        append(&facts, " root=/dev/vdb -- /bin/sh -c ls \n").ends_with(" rw root=/dev/vdb -- /bin/sh -c ls")
    );
    assert!(append(&facts, "-- single").ends_with(" rw -- single"));
}

#[test]
fn a_replacement_is_used_alone() {
    let facts = CmdlineFacts { first_disk_readonly: Some(false), ..VIRTIO };
    assert_eq!(compute(&facts, &CmdlinePlan::Replace(" foo ".to_owned())).unwrap(), "foo");
    assert_eq!(compute(&facts, &CmdlinePlan::Replace(String::new())).unwrap(), "");
}

#[test]
fn the_longest_line_a_kernel_takes_is_2047_bytes() {
    let room = CMDLINE_MAX_BYTES - append(&VIRTIO, "").len() - 1;
    assert_eq!(append(&VIRTIO, &"x".repeat(room)).len(), 2047);
    let error = compute(&VIRTIO, &CmdlinePlan::Append("x".repeat(room + 1))).unwrap_err();
    assert!(error.to_string().contains("has 2048 bytes"), "{error}");
}
