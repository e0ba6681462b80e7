//! The balloon as it was typed: `on`, `off`, or `on,deflate-on-oom=off,free-page-reporting=on`.

use super::error::Problem;
use super::options::pairs;
use super::plan::BalloonPlan;

const KEYS: [&str; 3] = ["state", "deflate-on-oom", "free-page-reporting"];

/// Reads `--balloon`'s value; `None` when there is to be no balloon.
///
/// # Errors
/// When a key is unknown or repeated, or a value is neither on nor off.
pub(super) fn parse(text: &str) -> Result<Option<BalloonPlan>, Problem> {
    let refuse = |reason: String| Problem::Device {
        text: text.to_owned(),
        what: "a balloon",
        reason,
        example: "on,free-page-reporting=off",
    };
    let (mut plan, mut state) = (BalloonPlan::default(), true);
    let given = pairs(text, "state").map_err(refuse)?;
    for &(key, value) in &given {
        let field = match key {
            "state" => &mut state,
            "deflate-on-oom" => &mut plan.deflate_on_oom,
            "free-page-reporting" => &mut plan.free_page_reporting,
            _ => return Err(refuse(super::yaml::unknown_key(key, &KEYS))),
        };
        *field = match value {
            "on" | "true" => true,
            "off" | "false" => false,
            _ if key == "state" => {
                let words = "it is on or off; how much memory the guest should do with is told while it runs, by `nestling memory SIZE`";
                return Err(refuse(words.to_owned()));
            }
            _ => return Err(refuse(format!("`{key}` is on or off, not `{value}`"))),
        };
    }
    if !state && given.len() > 1 {
        return Err(refuse("a balloon that is off has no other keys".to_owned()));
    }
    Ok(state.then_some(plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_on_or_off_and_its_keys_too() {
        let plan =
            |deflate_on_oom, free_page_reporting| Some(BalloonPlan { deflate_on_oom, free_page_reporting });
        for (text, expected) in [
            ("on", plan(true, true)),
            ("off", None),
            ("false", None),
            ("deflate-on-oom=off", plan(false, true)),
            ("on,free-page-reporting=off", plan(true, false)),
            ("state=on,deflate-on-oom=false,free-page-reporting=on", plan(false, true)),
        ] {
            assert_eq!(parse(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_which_part() {
        for (text, part) in [
            ("", "on or off"),
            ("128M", "by `nestling memory SIZE`"),
            ("on,deflate-on-oom=1", "`deflate-on-oom` is on or off, not `1`"),
            ("on,deflate-on-oom", "`deflate-on-oom` has no value"),
            ("on,free-page-report=on", "did you mean `free-page-reporting`"),
            ("off,deflate-on-oom=on", "no other keys"),
            ("on,state=off", "twice"),
        ] {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
