//! Putting and getting files.

use std::path::Path;

use nestling_protocol::files::{Destination, FilesError, Options, receive, send};
use nestling_protocol::{ByteString, Failure, FailureKind, Response};

use super::session::say;
use super::transport::Stream;
use crate::users::Identity;

/// Takes a tree from the host.
pub(super) fn put(stream: &Stream, path: &ByteString, owner: Option<&str>) -> Result<(), Failure> {
    let owner = owner.map(Identity::find).transpose()?.map(|identity| (identity.uid, identity.gid));
    let destination = Destination::open(absolute(path)?, None).map_err(|error| error.failure())?;
    say(stream, &Response::Accepted);
    let options = Options { owner, ..Options::TRUSTED };
    let totals =
        receive(&mut &*stream, destination, options, &mut |_| {}).map_err(|error| error.failure())?;
    say(stream, &Response::Done(totals));
    Ok(())
}

/// Sends a tree to the host.
pub(super) fn get(stream: &Stream, path: &ByteString) -> Result<(), Failure> {
    let path = absolute(path)?;
    if let Err(error) = std::fs::metadata(path) {
        let message = format!("cannot open {}: {}", path.display(), describe(&error));
        return Err(Failure::new((&error).into(), message));
    }
    say(stream, &Response::Accepted);
    match send(path, &mut &*stream) {
        // The tree's own end, or failure, is the last word.
        Ok(_) | Err(FilesError::Protocol(_)) => Ok(()),
        Err(error) => {
            crate::say!("sending {} to the host: {error}", path.display());
            Ok(())
        }
    }
}

fn absolute(path: &ByteString) -> Result<&Path, Failure> {
    let path = Path::new(path.as_os_str());
    let refusal = || Failure::new(FailureKind::BadRequest, format!("{} is no absolute path", path.display()));
    path.is_absolute().then_some(path).ok_or_else(refusal)
}

fn describe(error: &std::io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().into())
}
