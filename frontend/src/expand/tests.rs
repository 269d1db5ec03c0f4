use proptest::prelude::*;

use super::*;

fn env() -> Vec<(String, String)> {
    [("a", "1"), ("e", ""), ("path", "/usr/local/bin"), ("sp", "x  y"), ("star", "a*b*c")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn expand(word: &str) -> Result<String, String> {
    expand_word(word, '\\', &env()).map(|expanded| expanded.text).map_err(|error| error.cause.to_string())
}

#[test]
fn every_form_expands() {
    for (word, text) in [
        ("plain", "plain"),
        ("$a", "1"),
        ("${a}", "1"),
        ("x$a-y", "x1-y"),
        ("$u", ""),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("${u:-w}", "w"),
        ("${u-w}", "w"),
        ("${e:-w}", "w"),
        ("${e-w}", ""),
        ("${a:-w}", "1"),
        ("${u:+w}", ""),
        ("${u+w}", ""),
        ("${e:+w}", ""),
        ("${e+w}", "w"),
        ("${a:+w}", "w"),
        ("${a:?m}", "1"),
        ("${e?m}", ""),
        ("${u:-${a}}", "1"),
        ("${u:-${v:-$a}}", "1"),
        ("${u:-'$a'\"$a\"}", "$a1"),
        ("${path#*/}", "usr/local/bin"),
        ("${path##*/}", "bin"),
        ("${path%/*}", "/usr/local"),
        ("${path%%/*}", ""),
        ("${path%/b?n}", "/usr/local"),
        ("${path/usr/opt}", "/opt/local/bin"),
        ("${path/\\//:}", ":usr/local/bin"),
        ("${path//\\//:}", ":usr:local:bin"),
        ("${path//o/0}", "/usr/l0cal/bin"),
        ("${path//x/y}", "/usr/local/bin"),
        ("${path//l/'$0$0'}", "/usr/llocall/bin"),
        ("${star#a\\*}", "b*c"),
        ("${star//\\*/-}", "a-b-c"),
        ("${u#x}", ""),
        ("'$a'", "$a"),
        ("\"$a\"", "1"),
        ("\"\\$a \\\" \\n\"", "$a \" \\n"),
        ("\\$a", "$a"),
        ("a\\nb", "anb"),
        ("a\\", "a"),
        ("$1$@x", "x"),
        ("${sp}", "x  y"),
        ("[${path#\\/}]", "[usr/local/bin]"),
    ] {
        assert_eq!(expand(word), Ok(text.to_owned()), "{word}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    for (word, message) in [
        ("${u:?}", "u: is not allowed to be unset"),
        ("${u?}", "u: is not allowed to be unset"),
        ("${e:?}", "e: is not allowed to be empty"),
        ("${u:?must be set}", "u: must be set"),
        ("${a", "syntax error: missing '}'"),
        ("${", "syntax error: missing '}'"),
        ("${u:-x", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${{a}", "syntax error: bad substitution"),
        ("${a=x}", "unsupported modifier (=) in substitution"),
        ("${a:x}", "unsupported modifier (:x) in substitution"),
        ("${a/x}", "syntax error: missing '/' in ${}"),
        ("${path#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ("\"a", "unexpected end of statement while looking for matching double-quote"),
    ] {
        assert_eq!(expand(word), Err(message.to_owned()), "{word}");
    }
    let error = expand_word("'a\\'b'", '\\', &EmptyEnv).unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to process \"'a\\\\'b'\": unexpected end of statement while looking for matching single-quote"
    );
}

#[test]
fn the_other_escape_character_leaves_backslashes_alone() {
    let expanded = expand_word("c:\\$a`$a", '`', &env()).unwrap();
    assert_eq!(expanded.text, "c:\\1$a");
}

#[test]
fn names_are_reported() {
    let expanded = expand_word("$a ${u:-$v} $a", '\\', &env()).unwrap();
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(expanded.unmatched.into_iter().collect::<Vec<_>>(), ["u", "v"]);
}

#[test]
fn words_are_split_after_expansion() {
    let words = |word| expand_words(word, '\\', &env()).unwrap().words;
    assert_eq!(words("80  $a"), ["80", "1"]);
    assert_eq!(words("$sp"), ["x", "y"]);
    assert_eq!(words("\"$sp\" 'a b'c"), ["x  y", "a bc"]);
    assert_eq!(words("a\\ b"), ["a b"]);
    assert_eq!(words("$u \"\""), Vec::<String>::new());
}

#[test]
fn heredoc_bodies_keep_their_quotes() {
    let body = "it's \"$a\" \\$a '$a'\n";
    assert_eq!(expand_heredoc(body, &env()).unwrap().text, "it's \"1\" $a '1'\n");
}

#[test]
fn unquoting_leaves_variables_alone() {
    assert_eq!(unquote("'a b'\"c\"\\d$e${f:-g}", '\\').unwrap(), "a bcd$e${f:-g}");
}

#[test]
fn growth_and_nesting_are_bounded() {
    let big = |_: &str| Some("x".repeat(MAX_VALUE / 2 + 1));
    assert_eq!(expand_word("$a", '\\', &big).unwrap().text.len(), MAX_VALUE / 2 + 1);
    assert_eq!(expand_word("$a$a", '\\', &big).unwrap_err().cause, ExpandErrorKind::TooLarge);
    let doubled = expand_word("${a//?/yy}", '\\', &big).unwrap_err().cause;
    assert_eq!(doubled, ExpandErrorKind::TooLarge);
    let busy = expand_word(&"${a##*}".repeat(200), '\\', &big).unwrap_err().cause;
    assert_eq!(busy, ExpandErrorKind::TooLarge);
    let deep = format!("{}x{}", "${a:-".repeat(100_000), "}".repeat(100_000));
    assert_eq!(expand_word(&deep, '\\', &EmptyEnv).unwrap_err().cause, ExpandErrorKind::TooDeep);
    let fine = format!("{}x{}", "${a:-".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    assert_eq!(expand_word(&fine, '\\', &EmptyEnv).unwrap().text, "x");
}

#[test]
fn patterns_are_anchored_where_they_should_be() {
    for (word, text) in [
        ("${star#*b}", "*c"),
        ("${star%b*}", "a*"),
        ("${star#b}", "a*b*c"),
        ("${path%%}", "/usr/local/bin"),
        ("${path#}", "/usr/local/bin"),
        ("${path##*}", ""),
        ("${path//l?/_}", "/usr/_ca_bin"),
        ("${path/[a]/x}", "/usr/local/bin"),
    ] {
        assert_eq!(expand(word), Ok(text.to_owned()), "{word}");
    }
}

/// Text made of what the lexer looks at.
fn junk() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            Just("$"),
            Just("${"),
            Just("}"),
            Just("a"),
            Just(":"),
            Just("-"),
            Just("+"),
            Just("?"),
            Just("#"),
            Just("%"),
            Just("/"),
            Just("*"),
            Just("\\"),
            Just("`"),
            Just("'"),
            Just("\""),
            Just(" "),
            Just("ö"),
            Just("1"),
            Just("\n"),
        ],
        0..40,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_word_ends_in_a_value_or_an_error(word in prop_oneof![junk(), any::<String>()], escape in "[\\\\`]") {
        let escape = escape.chars().next().unwrap();
        let expanded = expand_word(&word, escape, &env());
        prop_assert!(expanded.is_err() || expanded.unwrap().text.len() <= MAX_VALUE);
        let _ = expand_words(&word, escape, &env());
        let _ = expand_heredoc(&word, &env());
        let _ = unquote(&word, escape);
        let _ = split_raw(&word);
    }

    #[test]
    fn text_without_special_characters_stays(word in "[^<$'\"\\\\]*") {
        prop_assert_eq!(expand_word(&word, '\\', &env()).unwrap().text, word.clone());
        let words: Vec<_> = word.split_whitespace().map(str::to_owned).collect();
        prop_assert_eq!(expand_words(&word, '\\', &env()).unwrap().words, words);
    }

    #[test]
    fn what_is_in_single_quotes_stays(word in "[^']*") {
        prop_assert_eq!(expand_word(&format!("'{word}'"), '\\', &env()).unwrap().text, word);
    }
}
