use proptest::prelude::*;

use super::*;
use crate::ast::{Command, CopySource, Healthcheck, Pairs};

fn messages(text: &str) -> Vec<String> {
    parse(text.as_bytes()).1.into_iter().map(|diagnostic| diagnostic.message).collect()
}

/// The kind of the only instruction after `FROM x`.
fn one(text: &str) -> InstructionKind {
    let (dockerfile, errors) = parse(format!("FROM x\n{text}").as_bytes());
    assert_eq!(errors, [], "{text}");
    assert_eq!(dockerfile.instructions.len(), 2, "{text}");
    dockerfile.instructions.into_iter().next_back().unwrap().kind
}

#[test]
fn a_file_becomes_a_tree() {
    let text = "\u{feff}# syntax=docker/dockerfile:1\nARG V=1\n# base the base\nFROM --platform=$BUILDPLATFORM x:$V AS Base\r\nrun a \\\n  b\r\nCMD [\"x\", \"y\"]\n";
    let (dockerfile, errors) = parse(text.as_bytes());
    assert_eq!(errors, []);
    let [arg, from, run, cmd] = dockerfile.instructions.as_slice() else { panic!("{dockerfile:?}") };
    assert_eq!(&text[arg.span.start..arg.span.end], "ARG V=1");
    let InstructionKind::From(kind) = &from.kind else { panic!("{from:?}") };
    assert_eq!(from.comments[0].value, "base the base");
    assert_eq!(kind.platform.as_ref().unwrap().value, "$BUILDPLATFORM");
    assert_eq!(kind.image.value, "x:$V");
    let name = kind.name.as_ref().unwrap();
    assert_eq!(&text[name.span.start..name.span.end], "Base");
    let InstructionKind::Run(kind) = &run.kind else { panic!("{run:?}") };
    let Command::Shell(line) = &kind.command else { panic!("{run:?}") };
    assert_eq!(line.value, "a   b");
    assert_eq!(&text[line.span.start..line.span.end], "a \\\n  b");
    assert_eq!(run.original, "run a   b");
    let InstructionKind::Cmd(Command::Exec(words)) = &cmd.kind else { panic!("{cmd:?}") };
    assert_eq!(words, &["x", "y"]);
}

#[test]
fn heredocs_take_the_lines_after_theirs() {
    let InstructionKind::Run(run) = one("RUN cat <<A <<-'B' >x\na $b\r\nA\n\tc\n\t\tB\n") else { panic!() };
    let [a, b] = run.heredocs.as_slice() else { panic!("{run:?}") };
    assert_eq!((a.name.as_str(), a.content.as_str(), a.expand, a.chomp), ("A", "a $b\r\n", true, false));
    assert_eq!((b.name.as_str(), b.content.as_str(), b.expand, b.chomp), ("B", "\tc\n", false, true));
    assert_eq!(b.text(), "c\n");
    assert_eq!(b.word.value, "<<-'B'");
    // Blanks may stand in front of the name, but not behind the dash.
    let InstructionKind::Run(run) = one("RUN cat <<  A >x 3<<\tB\na\nA\nb\nB\n") else { panic!() };
    let bodies: Vec<_> = run.heredocs.iter().map(|heredoc| heredoc.content.as_str()).collect();
    assert_eq!(bodies, ["a\n", "b\n"]);
    let InstructionKind::Run(run) = one("RUN cat <<- A") else { panic!() };
    assert!(run.heredocs.is_empty());
    let InstructionKind::Copy(copy) = one("COPY a <<F /d/\nx\nF") else { panic!() };
    assert!(matches!(&copy.sources[..], [CopySource::Path(_), CopySource::Heredoc(f)] if f.content == "x\n"));
    let InstructionKind::Onbuild(trigger) = one("ONBUILD  RUN <<-F\n\tx\n\tF\n") else { panic!() };
    assert_eq!(trigger.text.value, "RUN <<-F\n\tx\nF");
    assert!(parse_instruction(&trigger.text.value, '\\').is_ok());
    for text in ["RUN echo $((1 << 2))", "RUN [\"x\", \"<<EOF\"]", "RUN x <<<EOF", "CMD x <<EOF"] {
        one(text);
    }
}

#[test]
fn errors_come_all_at_once_with_hints() {
    let (dockerfile, errors) = parse(b"FROM x\nRUNN <<E\nFORM y\nE\nCOPY a\nCOPY --chmd=1 a b\nRUN ok\n");
    let found: Vec<_> = errors.iter().map(|error| (error.message.as_str(), error.help.as_deref())).collect();
    assert_eq!(
        found,
        [
            ("unknown instruction: RUNN", Some("did you mean RUN?")),
            (
                "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
                Some("write COPY SOURCE... DESTINATION")
            ),
            ("unknown flag: --chmd", Some("did you mean --chmod?")),
        ]
    );
    assert_eq!(dockerfile.instructions.len(), 2);
}

#[test]
fn every_error_has_its_words() {
    let table: &[(&str, &str)] = &[
        ("", "the Dockerfile cannot be empty"),
        ("# only\n\n", "file with no instructions"),
        ("ARG A", "dockerfile contains no stages to build"),
        ("RUN a\nRUN b\nFROM x", "no build stage in current context"),
        ("FROM x\0", "the Dockerfile contains a NUL byte, so it is no text"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a IS b", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1b",
            "invalid name for build stage: \"1b\", name can't start with a number or contain symbols",
        ),
        ("FROM x\nFOO a", "unknown instruction: FOO"),
        ("FROM x\nADD --checksum a b", "missing a value on flag: --checksum"),
        ("FROM x\nCOPY --link= a b", "missing a value on flag: --link"),
        ("FROM x\nCOPY --link=1 a b", "expecting boolean value for flag --link, not: 1"),
        ("FROM x\nCOPY --chown=a --chown=b c d", "duplicate flag specified: --chown"),
        ("FROM x\nENV --a=b c=d", "unknown flag: --a"),
        ("FROM x\nRUN --network=hos a", "invalid network mode \"hos\""),
        ("FROM x\nRUN --security=no a", "security \"no\" is not valid"),
        ("FROM x\nCOPY a <<E\nx\nE", "COPY cannot accept a heredoc as a destination"),
        ("FROM x\nRUN <<E\nx", "unterminated heredoc"),
        ("FROM x\nCMD [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("FROM x\nSHELL bash", "SHELL requires the arguments to be in JSON form"),
        ("FROM x\nSHELL []", "SHELL requires at least one argument"),
        ("FROM x\nENV", "ENV requires at least one argument"),
        ("FROM x\nENV a", "ENV must have two arguments"),
        ("FROM x\nENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
        ("FROM x\nLABEL =b", "LABEL names can not be blank"),
        ("FROM x\nARG", "ARG requires at least one argument"),
        ("FROM x\nARG =b", "ARG names can not be blank"),
        ("FROM x\nUSER", "USER requires exactly one argument"),
        ("FROM x\nEXPOSE", "EXPOSE requires at least one argument"),
        ("FROM x\nVOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("FROM x\nHEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("FROM x\nHEALTHCHECK NONE a", "HEALTHCHECK NONE takes no arguments"),
        ("FROM x\nHEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("FROM x\nHEALTHCHECK foo", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("FROM x\nHEALTHCHECK --interval=1us CMD a", "Interval \"interval\" cannot be less than 1ms"),
        ("FROM x\nHEALTHCHECK --timeout=1 CMD a", "time: missing unit in duration \"1\""),
        ("FROM x\nHEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)"),
        ("FROM x\nONBUILD", "ONBUILD requires at least one argument"),
        ("FROM x\nONBUILD ONBUILD RUN a", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("FROM x\nONBUILD from a", "FROM isn't allowed as an ONBUILD trigger"),
        ("FROM x\nONBUILD LABEL a", "LABEL must have two arguments"),
        (
            "FROM x\nCOPY --from=$a b c",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
        ),
    ];
    for (text, message) in table {
        assert_eq!(messages(text), [*message], "{text:?}");
    }
    let long = format!("FROM x\nRUN {}\nRUN b", "a".repeat(70_000));
    assert_eq!(messages(&long), ["dockerfile line greater than max allowed size of 65535"]);
    let (_, errors) = parse(b"FROM x\nRUN \xff");
    assert_eq!(
        (errors[0].message.as_str(), errors[0].spans[0].start),
        ("the Dockerfile is not valid UTF-8", 11)
    );
}

#[test]
fn an_unterminated_heredoc_points_at_the_near_miss() {
    let (_, errors) = parse(b"FROM x\nRUN <<EOF\na\n  EOF\nRUN b\n");
    assert_eq!(errors[0].spans, [Span { start: 11, end: 16 }, Span { start: 19, end: 24 }]);
    assert!(errors[0].help.as_ref().unwrap().contains("EOF"));
}

#[test]
fn forms_of_single_instructions() {
    let InstructionKind::Env(Pairs { pairs, legacy: true }) = one("ENV a  b \\\n c ") else { panic!() };
    assert_eq!((pairs[0].0.value.as_str(), pairs[0].1.value.as_str()), ("a", "b  c"));
    let InstructionKind::Env(Pairs { pairs, legacy: false }) = one("ENV a='b c' d=\"e\" f=") else {
        panic!()
    };
    let values: Vec<_> =
        pairs.iter().map(|(name, value)| (name.value.as_str(), value.value.as_str())).collect();
    assert_eq!(values, [("a", "'b c'"), ("d", "\"e\""), ("f", "")]);
    let InstructionKind::Copy(copy) =
        one("COPY --from=b --chown='a:b' --link --exclude=x --exclude=y [\"a b\", \"c\"]")
    else {
        panic!()
    };
    assert_eq!(copy.destination.value, "c");
    assert_eq!((copy.from.unwrap().value.as_str(), copy.chown.unwrap().value.as_str()), ("b", "a:b"));
    assert_eq!((copy.link, copy.exclude.len()), (true, 2));
    let InstructionKind::Run(run) =
        one("RUN --mount=type=cache,target=/a --mount=type=tmpfs,target=/b -- --x")
    else {
        panic!()
    };
    assert_eq!(run.mounts.len(), 2);
    assert!(matches!(run.command, Command::Shell(line) if line.value == "--x"));
    for empty in ["RUN", "CMD", "ENTRYPOINT"] {
        one(empty);
    }
    assert!(matches!(one("healthcheck none"), InstructionKind::Healthcheck(Healthcheck::None)));
    let InstructionKind::Healthcheck(Healthcheck::Check { command, interval, retries, .. }) =
        one("HEALTHCHECK --interval=1m30s --retries=3 CMD [\"a\"]")
    else {
        panic!()
    };
    assert_eq!((command, interval, retries), (Command::Exec(vec!["a".to_owned()]), 90_000_000_000, 3));
    assert!(matches!(one("ARG --foo X"), InstructionKind::Arg(args) if args.len() == 1));
}

#[test]
fn doc_comments_belong_to_what_is_right_below() {
    let (dockerfile, _) =
        parse(b"# A about A\n#B about B\nARG A B\n# A no\n\nARG A\n# A no\n#\nARG A\nFROM x");
    let comments: Vec<_> = dockerfile
        .instructions
        .iter()
        .filter_map(|instruction| match &instruction.kind {
            InstructionKind::Arg(args) => Some(args.iter().map(|arg| arg.comment.as_deref())),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(comments, [Some("about A"), Some("about B"), None, None]);
}

#[test]
fn the_escape_directive_changes_everything_but_heredocs_and_flags() {
    let (dockerfile, errors) = parse(b"# escape=`\nFROM x\nRUN dir `\n c:\\\nENV a=b` c\n");
    assert_eq!(errors, []);
    assert_eq!(dockerfile.instructions[1].original, "RUN dir  c:\\");
    let InstructionKind::Env(pairs) = &dockerfile.instructions[2].kind else { panic!() };
    assert_eq!(pairs.pairs[0].1.value, "b` c");
}

#[test]
fn a_trigger_is_one_instruction() {
    assert!(parse_instruction("RUN a \\\n b", '\\').is_ok());
    for text in ["", "# x", "RUN a\nRUN b", "FOO a", "COPY a"] {
        assert!(parse_instruction(text, '\\').is_err(), "{text:?}");
    }
}

#[test]
fn junk_stops_at_a_hundred_errors() {
    assert_eq!(messages(&"x\n".repeat(10_000)).len(), MAX_ERRORS);
}

/// Lines that are nearly instructions.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM "),
        Just("RUN "),
        Just("COPY "),
        Just("ADD "),
        Just("ENV "),
        Just("ARG "),
        Just("ONBUILD "),
        Just("HEALTHCHECK "),
        Just("CMD "),
        Just("VOLUME "),
        Just("#"),
        Just(" "),
        Just("\t"),
        Just("\r"),
        Just("\n"),
        Just("\n"),
        Just("\\"),
        Just("\\\n"),
        Just("`"),
        Just("<<E"),
        Just("<<-'E'"),
        Just("E\n"),
        Just("["),
        Just("]"),
        Just("\""),
        Just("'"),
        Just(","),
        Just("--x"),
        Just("--from=a"),
        Just("="),
        Just("a"),
        Just("ö"),
        Just("$"),
        Just("\u{feff}"),
        Just("\0"),
        Just("# escape=`\n"),
        Just("check=skip=all"),
        Just("--interval=1"),
        Just("AS "),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|parts| parts.concat())
}

/// What must hold of any text.
fn check_invariants(bytes: &[u8]) {
    let (dockerfile, errors) = parse(bytes);
    let text = text::decode(bytes);
    for span in errors.iter().flat_map(|error| &error.spans) {
        assert!(span.start <= span.end && span.end <= bytes.len(), "{span:?}");
        assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end), "{span:?}");
    }
    for error in &errors {
        error.render("Dockerfile", &text, crate::diagnostic::RenderStyle::Plain);
    }
    let mut end = 0;
    for instruction in &dockerfile.instructions {
        assert!(instruction.span.start >= end && instruction.span.end >= instruction.span.start);
        end = instruction.span.end;
        let keyword = instruction.keyword.span;
        assert_eq!(&text[keyword.start..keyword.end], instruction.keyword.value);
    }
    assert!(end <= bytes.len());
    crate::lint::check(&dockerfile);
}

proptest! {
    #[test]
    fn any_bytes_give_diagnostics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_invariants(&bytes);
    }

    #[test]
    fn nearly_instructions_give_diagnostics(text in nearly()) {
        check_invariants(text.as_bytes());
        let _ = parse_instruction(&text, '\\');
    }
}
