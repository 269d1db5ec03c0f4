use super::*;
use crate::ast::{Command, CopySource};

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
    assert_eq!((b.name.as_str(), b.content.as_str(), b.expand, b.chomp), ("B", "c\n", false, true));
    assert_eq!(b.word.value, "<<-'B'");
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
