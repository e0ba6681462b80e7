//! The limit of open files, which shows as the failure of whatever wanted one more.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::preflight::Layer;
use crate::status::model::EndReason;

/// Names the limit where a run fails for want of a descriptor: neither the spec nor Nestling can help it. Any other reason
/// stays as it is.
#[must_use]
pub fn name(reason: EndReason) -> EndReason {
    let limit = || getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    match reason {
        EndReason::BadInput { detail } | EndReason::Internal { detail }
            if detail.contains(Errno::EMFILE.desc()) =>
        {
            EndReason::PreflightFailed { detail: explain(&detail, limit()) }
        }
        other => other,
    }
}

/// What was being done is told; what would have mended another failure of it is not.
fn explain(detail: &str, limit: u64) -> String {
    let words = Errno::EMFILE.desc();
    let doing = detail.split(words).next().unwrap_or_default();
    format!(
        "the {} layer fails: {doing}{words}: this process may have {limit} (ulimit -Hn); raise the limit, as with docker's \
         --ulimit nofile=65536 or the container runtime's LimitNOFILE",
        Layer::Confinement
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_named_and_nothing_else() {
        let detail = format!("cannot listen on a: {}; choose another path", Errno::EMFILE.desc());
        for reason in [EndReason::BadInput { detail: detail.clone() }, EndReason::Internal { detail }] {
            let named = name(reason);
            assert!(matches!(&named, EndReason::PreflightFailed { .. }), "{named}");
            assert!(
                named.to_string().contains("cannot listen on a: Too many open files: this process may have")
            );
            assert!(!named.to_string().contains("another path"), "{named}");
        }
        let other = EndReason::BadInput { detail: "too many files".to_owned() };
        assert_eq!(name(other.clone()), other);
    }
}
