//! "Did you mean": the nearest of some names.

use crate::diagnostic::Diagnostic;

/// The option nearest to `word`, if one is near: at most a third of it is different.
pub(crate) fn nearest<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    // Distances cost the product of the lengths; nobody mistypes a name this long.
    if wanted.len() > 256 {
        return None;
    }
    let allowed = (wanted.chars().count() / 3).max(1);
    options
        .into_iter()
        .filter(|option| option.len() <= 256 && *option != word)
        .map(|option| (strsim::damerau_levenshtein(&wanted, &option.to_lowercase()), option))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, option)| option)
}

/// The error with a suggestion, if there is one.
pub(crate) fn help<'a>(
    error: Diagnostic,
    word: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Diagnostic {
    match nearest(word, options) {
        Some(option) => error.with_help(format!("did you mean {option}?")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["build", "test", "release"];
        assert_eq!(nearest("biuld", names), Some("build"));
        assert_eq!(nearest("BUILD", names), Some("build"));
        assert_eq!(nearest("tset", names), Some("test"));
        assert_eq!(nearest("frontend", names), None);
    }
}
