//! The rules that the syntax tree alone can judge.

use std::collections::HashMap;
use std::sync::LazyLock;

use image::Platform;
use regex::Regex;

use super::config::check_comment;
use super::rules;
use crate::ast::{Command, Dockerfile, From, Instruction, InstructionKind, Span, Word};
use crate::diagnostic::Diagnostic;

/// Check a file. The findings are in the order of the file; [`Config::filter`](super::Config::filter) says which count.
pub fn check(dockerfile: &Dockerfile) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    casing(dockerfile, &mut findings);
    let mut stages = Stages::default();
    for instruction in &dockerfile.instructions {
        if let Some(span) = instruction.empty_continuation {
            findings.push(rules::no_empty_continuation(span));
        }
        description(instruction, &mut findings);
        stages.check(instruction, &mut findings);
    }
    findings.sort_by_key(|finding| finding.spans.first().map(|span| span.start));
    findings
}

/// Keywords are written as most of them are.
fn casing(dockerfile: &Dockerfile, findings: &mut Vec<Diagnostic>) {
    let is_from = |instruction: &Instruction| matches!(instruction.kind, InstructionKind::From(_));
    let first = dockerfile.instructions.iter().position(is_from).unwrap_or(dockerfile.instructions.len());
    let keywords = || dockerfile.instructions[first..].iter().map(|instruction| &instruction.keyword);
    let is_lower = |word: &Word| !word.value.contains(|letter: char| letter.is_ascii_uppercase());
    let is_upper = |word: &Word| !word.value.contains(|letter: char| letter.is_ascii_lowercase());
    let lower = keywords().filter(|word| is_lower(word)).count();
    let upper = keywords().filter(|word| is_upper(word)).count();
    let (majority, fits): (_, &dyn Fn(&Word) -> bool) =
        if lower > upper { ("lowercase", &is_lower) } else { ("uppercase", &is_upper) };
    findings.extend(
        keywords()
            .filter(|word| !fits(word))
            .map(|word| rules::consistent_instruction_casing(word.span, &word.value, majority)),
    );
}

/// A comment above ARG or a named FROM begins with the name.
fn description(instruction: &Instruction, findings: &mut Vec<Diagnostic>) {
    let Some(comment) = instruction.comments.iter().rev().find(|comment| check_comment(comment).is_none())
    else {
        return;
    };
    let (keyword, names): (_, Vec<&str>) = match &instruction.kind {
        InstructionKind::From(From { name: Some(name), .. }) => ("FROM", vec![&name.value]),
        InstructionKind::Arg(args) => ("ARG", args.iter().map(|arg| arg.name.value.as_str()).collect()),
        _ => return,
    };
    let first = comment.value.split(' ').next().unwrap_or_default();
    let is_first = |name: &&str| match keyword {
        "FROM" => name.to_lowercase() == first,
        _ => **name == *first,
    };
    if names.iter().any(is_first) {
        return;
    }
    let example = match names.as_slice() {
        [name] => (*name).to_owned(),
        _ => "<arg_key>".to_owned(),
    };
    findings.push(rules::invalid_definition_description(instruction.keyword.span, keyword, &example));
}

/// What a stage hands to those that start from it.
#[derive(Clone, Copy, Debug, Default)]
struct Inherited {
    has_workdir: bool,
    has_shell: bool,
}

#[derive(Debug, Default)]
struct Stages {
    // Keyed by name in lower case.
    named: HashMap<String, Inherited>,
    current: Option<Stage>,
}

#[derive(Debug, Default)]
struct Stage {
    name: Option<String>,
    inherited: Inherited,
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

impl Stages {
    fn check(&mut self, instruction: &Instruction, findings: &mut Vec<Diagnostic>) {
        if let InstructionKind::From(from) = &instruction.kind {
            self.from(instruction, from, findings);
            return;
        }
        let Some(stage) = &mut self.current else { return };
        stage.check(instruction, findings);
        if let Some(name) = &stage.name {
            self.named.insert(name.clone(), stage.inherited);
        }
    }

    fn from(&mut self, instruction: &Instruction, from: &From, findings: &mut Vec<Diagnostic>) {
        let inherited = self.named.get(&from.image.value.to_lowercase()).copied().unwrap_or_default();
        let mut stage = Stage { inherited, ..Stage::default() };
        if let Some(platform) = &from.platform {
            const_platform(platform, from.name.as_ref(), findings);
        }
        if let Some(as_keyword) = &from.as_keyword
            && !same_case(&instruction.keyword.value, &as_keyword.value)
        {
            findings.push(rules::from_as_casing(
                as_keyword.span,
                &instruction.keyword.value,
                &as_keyword.value,
            ));
        }
        if let Some(name) = &from.name {
            let lower = name.value.to_lowercase();
            if lower != name.value {
                findings.push(rules::stage_name_casing(name.span, &name.value));
            }
            if lower == "context" || lower == "scratch" {
                findings.push(rules::reserved_stage_name(name.span, &lower));
            }
            if self.named.insert(lower.clone(), inherited).is_some() {
                findings.push(rules::duplicate_stage_name(name.span, &lower));
            }
            stage.name = Some(lower);
        }
        self.current = Some(stage);
    }
}

impl Stage {
    fn check(&mut self, instruction: &Instruction, findings: &mut Vec<Diagnostic>) {
        let keyword = &instruction.keyword;
        match &instruction.kind {
            InstructionKind::Cmd(command) => {
                once(&mut self.cmd, keyword, findings);
                self.json(command, keyword, findings);
            }
            InstructionKind::Entrypoint(command) => {
                once(&mut self.entrypoint, keyword, findings);
                self.json(command, keyword, findings);
            }
            InstructionKind::Healthcheck(_) => once(&mut self.healthcheck, keyword, findings),
            InstructionKind::Shell(_) => self.inherited.has_shell = true,
            InstructionKind::Maintainer(_) => findings.push(rules::maintainer_deprecated(keyword.span)),
            InstructionKind::Workdir(path) => {
                // A path with variables is judged by nobody: its value is not known here.
                if !self.inherited.has_workdir && !path.value.contains('$') {
                    let plain = path.value.trim_matches(['"', '\'']);
                    if !plain.starts_with('/') {
                        findings.push(rules::workdir_relative_path(path.span, plain));
                    }
                }
                self.inherited.has_workdir = true;
            }
            InstructionKind::Env(pairs) => {
                if pairs.legacy {
                    findings.push(rules::legacy_key_value_format(keyword.span, &keyword.value));
                }
                for (name, _) in &pairs.pairs {
                    secret("ENV", name, findings);
                }
            }
            InstructionKind::Label(pairs) if pairs.legacy => {
                findings.push(rules::legacy_key_value_format(keyword.span, &keyword.value));
            }
            InstructionKind::Arg(args) => {
                for arg in args {
                    secret("ARG", &arg.name, findings);
                }
            }
            InstructionKind::Expose(ports) => {
                for port in ports {
                    expose(port, findings);
                }
            }
            _ => {}
        }
    }

    /// The shell that a command line gets may swallow signals; one chosen with SHELL is meant.
    fn json(&self, command: &Command, keyword: &Word, findings: &mut Vec<Diagnostic>) {
        if matches!(command, Command::Shell(_)) && !self.inherited.has_shell {
            findings.push(rules::json_args_recommended(keyword.span, &keyword.value));
        }
    }
}

/// Only the last of its kind counts: an earlier one is reported.
fn once(earlier: &mut Option<Span>, keyword: &Word, findings: &mut Vec<Diagnostic>) {
    if let Some(span) = earlier.replace(keyword.span) {
        findings.push(rules::multiple_instructions_disallowed(span, &keyword.value));
    }
}

/// A stage that is always for one platform says so in its name.
fn const_platform(platform: &Word, name: Option<&Word>, findings: &mut Vec<Diagnostic>) {
    if platform.value.contains('$') {
        return;
    }
    let Ok(parsed) = platform.value.parse::<Platform>() else { return };
    let name = name.map(|name| name.value.to_lowercase()).unwrap_or_default();
    if name.contains(&parsed.os) || name.contains(&parsed.architecture) {
        return;
    }
    findings.push(rules::from_platform_flag_const_disallowed(platform.span, &platform.value));
}

/// Whether `as` is written in the case of `FROM`; one in mixed case is another rule's matter.
fn same_case(from: &str, as_keyword: &str) -> bool {
    if from == from.to_lowercase() {
        as_keyword == as_keyword.to_lowercase()
    } else if from == from.to_uppercase() {
        as_keyword == as_keyword.to_uppercase()
    } else {
        true
    }
}

fn secret(keyword: &str, name: &Word, findings: &mut Vec<Diagnostic>) {
    static SECRET: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)")
            .expect("it is a valid pattern")
    });
    static ALLOWED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("(?i)(?:_|^)(?:public|file|version)(?:_|$)").expect("it is a valid pattern")
    });
    if SECRET.is_match(&name.value) && !ALLOWED.is_match(&name.value) {
        findings.push(rules::secrets_used_in_arg_or_env(name.span, keyword, &name.value));
    }
}

fn expose(port: &Word, findings: &mut Vec<Diagnostic>) {
    // What variables stand for is not known here.
    if port.value.contains('$') {
        return;
    }
    let (host, container) = match port.value.rsplit_once(':') {
        Some((host, container)) => (host, container),
        None => ("", port.value.as_str()),
    };
    if let Some((_, protocol)) = container.split_once('/')
        && protocol != protocol.to_lowercase()
    {
        findings.push(rules::expose_proto_casing(port.span, &port.value));
    }
    if !host.is_empty() {
        findings.push(rules::expose_invalid_format(port.span, &port.value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let (dockerfile, errors) = crate::parse(text.as_bytes());
        assert_eq!(errors, [], "{text}");
        check(&dockerfile).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_about() {
        let table: &[(&str, &[&str])] = &[
            ("FROM x AS ok\nRUN a\n", &[]),
            ("FROM x AS Bad", &["Stage name 'Bad' should be lowercase"]),
            ("FROM x as b", &["'as' and 'FROM' keywords' casing do not match"]),
            ("from x AS b", &["'AS' and 'from' keywords' casing do not match"]),
            ("FROM x\nRUN a \\\n\n b", &["Empty continuation line"]),
            (
                "FROM x\ncopy a b\nCOPY a b",
                &["Command 'copy' should match the case of the command majority (uppercase)"],
            ),
            (
                "From x\nrun a\nrun b",
                &["Command 'From' should match the case of the command majority (lowercase)"],
            ),
            ("arg A\nFROM x", &[]),
            (
                "FROM x AS b\nFROM y AS B",
                &[
                    "Stage name 'B' should be lowercase",
                    "Duplicate stage name \"b\", stage names should be unique",
                ],
            ),
            ("FROM x AS scratch", &["Stage name should not use the same name as reserved stage \"scratch\""]),
            (
                "FROM x\nCMD a b",
                &["JSON arguments recommended for CMD to prevent unintended behavior related to OS signals"],
            ),
            ("FROM x\nSHELL [\"bash\"]\nENTRYPOINT a", &[]),
            ("FROM x AS s\nSHELL [\"bash\"]\nFROM S\nENTRYPOINT a", &[]),
            ("FROM x\nMAINTAINER a", &["Maintainer instruction is deprecated in favor of using label"]),
            (
                "FROM x\nWORKDIR a\nWORKDIR b",
                &["Relative workdir \"a\" can have unexpected results if the base image changes"],
            ),
            ("FROM x AS s\nWORKDIR /a\nWORKDIR b\nFROM s\nWORKDIR c", &[]),
            ("FROM x\nWORKDIR $HOME", &[]),
            (
                "FROM x\nCMD [\"a\"]\nCMD [\"b\"]\nFROM x\nCMD [\"c\"]",
                &[
                    "Multiple CMD instructions should not be used in the same stage because only the last one will be used",
                ],
            ),
            (
                "FROM x\nENV a b\nLABEL c d",
                &[
                    "\"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
                    "\"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format",
                ],
            ),
            (
                "FROM x\nARG API_TOKEN PUBLIC_KEY\nENV Password=1 KEYS=2 TOKEN_FILE=3",
                &[
                    "Do not use ARG or ENV instructions for sensitive data (ARG \"API_TOKEN\")",
                    "Do not use ARG or ENV instructions for sensitive data (ENV \"Password\")",
                ],
            ),
            (
                "FROM --platform=linux/arm64 x\nFROM --platform=linux/arm64 x AS b-arm64\nFROM --platform=$P x",
                &["FROM --platform flag should not use constant value \"linux/arm64\""],
            ),
            (
                "FROM x\nEXPOSE 80/TCP 81/udp 82:82 127.0.0.1:83:83 $P/TCP",
                &[
                    "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '82:82'",
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:83:83'",
                ],
            ),
            (
                "# about it\nARG A\n# A good\nARG A\n# c\nARG A B\n# b\nFROM x AS b\n\n# x\n\nFROM x AS c\n",
                &[
                    "Comment for ARG should follow the format: `# A <description>`",
                    "Comment for ARG should follow the format: `# <arg_key> <description>`",
                ],
            ),
        ];
        for (text, expected) in table {
            assert_eq!(messages(text), *expected, "{text}");
        }
    }
}
