//! What will back guest RAM. In a nested VM the first touch of each page is the dear part, so huge pages decide.

use super::finding::{CheckId, Finding, Findings, Layer};
use super::host::Host;
use super::text::{errno_name, printable, printable_bytes};

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const THP_DEFRAG: &str = "/sys/kernel/mm/transparent_hugepage/defrag";
const THP_SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const MEMINFO: &str = "/proc/meminfo";
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";
const STATUS: &str = "/proc/self/status";

/// GKE LinuxNodeConfig as of November 2026.
const FIX_THP: &str = "GKE node system configuration (gcloud container node-pools create --system-config-from-file): \
     linuxConfig.transparentHugepageEnabled: TRANSPARENT_HUGEPAGE_ENABLED_MADVISE (API: linuxNodeConfig); or on the \
     node: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";

/// Judges transparent huge pages, the hugetlb pool and overcommit.
pub(super) fn check(host: &dyn Host, findings: &mut Findings) {
    findings.add(thp(host));
    findings.add(shmem(host));
    findings.add(hugetlb(host));
    findings.add(overcommit(host));
}

/// The word in brackets: `always [madvise] never`.
fn chosen(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(printable(word))
}

fn thp(host: &dyn Host) -> Finding {
    let id = CheckId::MemoryThp;
    let content = match host.read(THP) {
        Ok(content) => content,
        Err(errno) => {
            return Finding::warning(id, Layer::Memory, format!("{THP}: {}", errno_name(errno as i32)))
                .means("the kernel has no transparent huge pages or does not show them; on 4 KiB pages a nested guest boots and builds several times slower")
                .fix("use a node image with CONFIG_TRANSPARENT_HUGEPAGE, and mount /sys");
        }
    };
    let defrag = host.read(THP_DEFRAG).ok().and_then(|content| chosen(&content));
    let defrag = defrag.map(|word| format!("; defrag: {word}")).unwrap_or_default();
    let mode = chosen(&content);
    let saw = format!("{THP}: {}{defrag}", mode.clone().unwrap_or_else(|| printable_bytes(&content)));
    if status_value(host, "THP_enabled").as_deref() == Some("0") {
        return Finding::warning(id, Layer::Memory, format!("{saw}; {STATUS}: THP_enabled: 0"))
            .means("huge pages are switched off for this process (prctl PR_SET_THP_DISABLE)")
            .fix("start Nestling from a parent that does not switch them off");
    }
    match mode.as_deref() {
        Some("always" | "madvise") => Finding::ok(id, Layer::Memory, saw),
        Some("never") => Finding::warning(id, Layer::Memory, saw)
            .means("guest RAM is backed by 4 KiB pages: each first touch costs nested page faults, and heavy guests run several times slower")
            .fix(FIX_THP),
        _ => Finding::info(id, Layer::Memory, saw).means("not a mode this check knows"),
    }
}

fn shmem(host: &dyn Host) -> Finding {
    let id = CheckId::MemoryShmemThp;
    match host.read(THP_SHMEM).ok().and_then(|content| chosen(&content)) {
        Some(mode) => Finding::info(id, Layer::Memory, format!("{THP_SHMEM}: {mode}"))
            .means("matters for shared guest RAM only, which --share makes"),
        None => Finding::info(id, Layer::Memory, format!("{THP_SHMEM}: not to be read")),
    }
}

fn hugetlb(host: &dyn Host) -> Finding {
    let id = CheckId::MemoryHugepages;
    let Ok(content) = host.read(MEMINFO) else {
        return Finding::info(id, Layer::Memory, format!("{MEMINFO}: not to be read"));
    };
    let text = String::from_utf8_lossy(&content);
    let value = |key| field(&text, key).unwrap_or_else(|| "?".to_owned());
    let saw = format!(
        "{MEMINFO}: HugePages_Total {}, HugePages_Free {}, Hugepagesize {}",
        value("HugePages_Total"),
        value("HugePages_Free"),
        value("Hugepagesize")
    );
    Finding::info(id, Layer::Memory, saw)
        .means("a VM with a --share takes its RAM from this pool if it is large enough; no other needs it")
}

fn overcommit(host: &dyn Host) -> Finding {
    let id = CheckId::MemoryOvercommit;
    let Ok(content) = host.read(OVERCOMMIT) else {
        return Finding::info(id, Layer::Memory, format!("{OVERCOMMIT}: not to be read"));
    };
    let value = printable_bytes(&content);
    let saw = format!("{OVERCOMMIT}: {value}");
    match value.as_str() {
        "0" | "1" => Finding::ok(id, Layer::Memory, saw),
        "2" => Finding::warning(id, Layer::Memory, saw)
            .means(
                "all guest RAM is charged to the commit limit when the VM is made, not when it is \
                touched; a large guest may be refused",
            )
            .fix("on the node: sysctl -w vm.overcommit_memory=0"),
        _ => Finding::info(id, Layer::Memory, saw).means("not a value this check knows"),
    }
}

/// The value of a `Key: value` line.
pub(super) fn field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| printable(value))
    })
}

/// The value of a line in `/proc/self/status`.
fn status_value(host: &dyn Host, key: &str) -> Option<String> {
    field(&String::from_utf8_lossy(&host.read(STATUS).ok()?), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_brackets_is_the_mode() {
        assert_eq!(chosen(b"always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen(b"always madvise never"), None);
        assert_eq!(chosen(b"]["), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(
            field("HugePages_Total:  3\nHugePages_Free: 2 kB\n", "HugePages_Free").as_deref(),
            Some("2 kB")
        );
        assert_eq!(field("NoColon 3", "NoColon 3"), None);
    }
}
