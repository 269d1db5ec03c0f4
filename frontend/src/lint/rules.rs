//! The rules: their names, what they are about, and what they say. Names, sentences and links are those of
//! `docker build --check`, so that its documentation and configurations hold here too.

use crate::ast::Span;
use crate::diagnostic::{Diagnostic, Severity};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, also the code of its findings.
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// Where it is explained.
    pub url: Option<&'static str>,
    /// It is off until `# check=experimental=` turns it on.
    pub experimental: bool,
}

impl Rule {
    fn finding(&self, span: Span, message: String) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            code: self.name,
            message,
            spans: vec![span],
            help: None,
            url: self.url.map(str::to_owned),
        }
    }
}

/// The rule of a name.
pub fn find(name: &str) -> Option<&'static Rule> {
    ALL.iter().find(|rule| rule.name == name)
}

/// Every rule.
pub const ALL: &[Rule] = &[
    STAGE_NAME_CASING,
    FROM_AS_CASING,
    NO_EMPTY_CONTINUATION,
    CONSISTENT_INSTRUCTION_CASING,
    DUPLICATE_STAGE_NAME,
    RESERVED_STAGE_NAME,
    JSON_ARGS_RECOMMENDED,
    MAINTAINER_DEPRECATED,
    UNDEFINED_ARG_IN_FROM,
    WORKDIR_RELATIVE_PATH,
    UNDEFINED_VAR,
    MULTIPLE_INSTRUCTIONS_DISALLOWED,
    LEGACY_KEY_VALUE_FORMAT,
    INVALID_BASE_IMAGE_PLATFORM,
    REDUNDANT_TARGET_PLATFORM,
    SECRETS_USED_IN_ARG_OR_ENV,
    INVALID_DEFAULT_ARG_IN_FROM,
    FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    COPY_IGNORED_FILE,
    INVALID_DEFINITION_DESCRIPTION,
    EXPOSE_PROTO_CASING,
    EXPOSE_INVALID_FORMAT,
];

macro_rules! rule {
    ($constant:ident, $name:literal, $page:literal, $description:literal) => {
        const $constant: Rule = Rule {
            name: $name,
            description: $description,
            url: Some(concat!("https://docs.docker.com/go/dockerfile/rule/", $page, "/")),
            experimental: false,
        };
    };
}

rule!(STAGE_NAME_CASING, "StageNameCasing", "stage-name-casing", "Stage names should be lowercase");
rule!(
    FROM_AS_CASING,
    "FromAsCasing",
    "from-as-casing",
    "The 'as' keyword should match the case of the 'from' keyword"
);
rule!(
    NO_EMPTY_CONTINUATION,
    "NoEmptyContinuation",
    "no-empty-continuation",
    "Empty continuation lines will become errors in a future release"
);
rule!(
    CONSISTENT_INSTRUCTION_CASING,
    "ConsistentInstructionCasing",
    "consistent-instruction-casing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)"
);
rule!(DUPLICATE_STAGE_NAME, "DuplicateStageName", "duplicate-stage-name", "Stage names should be unique");
rule!(
    RESERVED_STAGE_NAME,
    "ReservedStageName",
    "reserved-stage-name",
    "Reserved words should not be used as stage names"
);
rule!(
    JSON_ARGS_RECOMMENDED,
    "JSONArgsRecommended",
    "json-args-recommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
);
rule!(
    MAINTAINER_DEPRECATED,
    "MaintainerDeprecated",
    "maintainer-deprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
);
rule!(
    UNDEFINED_ARG_IN_FROM,
    "UndefinedArgInFrom",
    "undefined-arg-in-from",
    "FROM command must use declared ARGs"
);
rule!(
    WORKDIR_RELATIVE_PATH,
    "WorkdirRelativePath",
    "workdir-relative-path",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
);
rule!(UNDEFINED_VAR, "UndefinedVar", "undefined-var", "Variables should be defined before their use");
rule!(
    MULTIPLE_INSTRUCTIONS_DISALLOWED,
    "MultipleInstructionsDisallowed",
    "multiple-instructions-disallowed",
    "Multiple instructions of the same type should not be used in the same stage"
);
rule!(
    LEGACY_KEY_VALUE_FORMAT,
    "LegacyKeyValueFormat",
    "legacy-key-value-format",
    "Legacy key/value format with whitespace separator should not be used"
);
const INVALID_BASE_IMAGE_PLATFORM: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "Base image platform does not match expected target platform",
    // It has no page.
    url: None,
    experimental: false,
};
rule!(
    REDUNDANT_TARGET_PLATFORM,
    "RedundantTargetPlatform",
    "redundant-target-platform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
);
rule!(
    SECRETS_USED_IN_ARG_OR_ENV,
    "SecretsUsedInArgOrEnv",
    "secrets-used-in-arg-or-env",
    "Sensitive data should not be used in the ARG or ENV commands"
);
rule!(
    INVALID_DEFAULT_ARG_IN_FROM,
    "InvalidDefaultArgInFrom",
    "invalid-default-arg-in-from",
    "Default value for global ARG results in an empty or invalid base image name"
);
rule!(
    FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    "FromPlatformFlagConstDisallowed",
    "from-platform-flag-const-disallowed",
    "FROM --platform flag should not use a constant value"
);
rule!(
    COPY_IGNORED_FILE,
    "CopyIgnoredFile",
    "copy-ignored-file",
    "Attempting to Copy file that is excluded by .dockerignore"
);
const INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. \
                  If this is not intended to be a description comment, add an empty line or comment between the \
                  instruction and the comment.",
    url: Some("https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/"),
    experimental: true,
};
rule!(
    EXPOSE_PROTO_CASING,
    "ExposeProtoCasing",
    "expose-proto-casing",
    "Protocol in EXPOSE instruction should be lowercase"
);
rule!(
    EXPOSE_INVALID_FORMAT,
    "ExposeInvalidFormat",
    "expose-invalid-format",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
);

pub(super) fn stage_name_casing(span: Span, name: &str) -> Diagnostic {
    STAGE_NAME_CASING.finding(span, format!("Stage name '{name}' should be lowercase"))
}

pub(super) fn from_as_casing(span: Span, from: &str, as_keyword: &str) -> Diagnostic {
    FROM_AS_CASING.finding(span, format!("'{as_keyword}' and '{from}' keywords' casing do not match"))
}

pub(super) fn no_empty_continuation(span: Span) -> Diagnostic {
    NO_EMPTY_CONTINUATION.finding(span, "Empty continuation line".to_owned())
}

pub(super) fn consistent_instruction_casing(span: Span, keyword: &str, majority: &str) -> Diagnostic {
    let message = format!("Command '{keyword}' should match the case of the command majority ({majority})");
    CONSISTENT_INSTRUCTION_CASING.finding(span, message)
}

pub(super) fn duplicate_stage_name(span: Span, name: &str) -> Diagnostic {
    let message = format!("Duplicate stage name {name:?}, stage names should be unique");
    DUPLICATE_STAGE_NAME.finding(span, message)
}

pub(super) fn reserved_stage_name(span: Span, name: &str) -> Diagnostic {
    let message = format!("Stage name should not use the same name as reserved stage {name:?}");
    RESERVED_STAGE_NAME.finding(span, message)
}

pub(super) fn json_args_recommended(span: Span, keyword: &str) -> Diagnostic {
    let message = format!(
        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
    );
    JSON_ARGS_RECOMMENDED.finding(span, message)
}

pub(super) fn maintainer_deprecated(span: Span) -> Diagnostic {
    let message = "Maintainer instruction is deprecated in favor of using label";
    MAINTAINER_DEPRECATED.finding(span, message.to_owned())
}

pub(super) fn workdir_relative_path(span: Span, path: &str) -> Diagnostic {
    let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
    WORKDIR_RELATIVE_PATH.finding(span, message)
}

pub(super) fn multiple_instructions_disallowed(span: Span, keyword: &str) -> Diagnostic {
    let message = format!(
        "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
    );
    MULTIPLE_INSTRUCTIONS_DISALLOWED.finding(span, message)
}

pub(super) fn legacy_key_value_format(span: Span, keyword: &str) -> Diagnostic {
    let message =
        format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
    LEGACY_KEY_VALUE_FORMAT.finding(span, message)
}

pub(super) fn secrets_used_in_arg_or_env(span: Span, keyword: &str, name: &str) -> Diagnostic {
    let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})");
    SECRETS_USED_IN_ARG_OR_ENV.finding(span, message)
}

pub(super) fn from_platform_flag_const_disallowed(span: Span, platform: &str) -> Diagnostic {
    let message = format!("FROM --platform flag should not use constant value {platform:?}");
    FROM_PLATFORM_FLAG_CONST_DISALLOWED.finding(span, message)
}

pub(super) fn invalid_definition_description(span: Span, keyword: &str, name: &str) -> Diagnostic {
    let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
    INVALID_DEFINITION_DESCRIPTION.finding(span, message)
}

pub(super) fn expose_proto_casing(span: Span, port: &str) -> Diagnostic {
    let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
    EXPOSE_PROTO_CASING.finding(span, message)
}

pub(super) fn expose_invalid_format(span: Span, port: &str) -> Diagnostic {
    let message =
        format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
    EXPOSE_INVALID_FORMAT.finding(span, message)
}

/// FROM uses an ARG that no line before it declares.
pub fn undefined_arg_in_from(span: Span, name: &str, suggestion: Option<&str>) -> Diagnostic {
    let hint = suggestion.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
    UNDEFINED_ARG_IN_FROM.finding(span, format!("FROM argument '{name}' is not declared{hint}"))
}

/// An instruction uses a variable that nothing sets.
pub fn undefined_var(span: Span, name: &str, suggestion: Option<&str>) -> Diagnostic {
    let hint = suggestion.map(|near| format!(" (did you mean ${near}?)")).unwrap_or_default();
    UNDEFINED_VAR.finding(span, format!("Usage of undefined variable '${name}'{hint}"))
}

/// FROM has a platform that it would have without: `variable` is as written, `$TARGETPLATFORM`.
pub fn redundant_target_platform(span: Span, variable: &str) -> Diagnostic {
    let message = format!(
        "Setting platform to predefined {variable} in FROM is redundant as this is the default behavior"
    );
    REDUNDANT_TARGET_PLATFORM.finding(span, message)
}

/// Without build arguments, the base name would be empty or invalid: `image` is as written.
pub fn invalid_default_arg_in_from(span: Span, image: &str) -> Diagnostic {
    let message = format!("Default value for ARG {image} results in empty or invalid base image name");
    INVALID_DEFAULT_ARG_IN_FROM.finding(span, message)
}

/// The base image is for another platform than the build.
pub fn invalid_base_image_platform(span: Span, image: &str, expected: &str, actual: &str) -> Diagnostic {
    let message = format!(
        "Base image {image} was pulled with platform {actual:?}, expected {expected:?} for current build"
    );
    INVALID_BASE_IMAGE_PLATFORM.finding(span, message)
}

/// COPY or ADD names a file that the ignore file keeps out of the context: `keyword` is `Copy` or `Add`.
pub fn copy_ignored_file(span: Span, keyword: &str, file: &str) -> Diagnostic {
    let message = format!("Attempting to {keyword} file {file:?} that is excluded by .dockerignore");
    COPY_IGNORED_FILE.finding(span, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_is_made_of_its_rules_name() {
        for rule in ALL {
            let Some(url) = rule.url else { continue };
            let page = url.trim_end_matches('/').rsplit('/').next().unwrap();
            assert_eq!(page.replace('-', ""), rule.name.to_lowercase());
            assert_eq!(find(rule.name), Some(rule));
        }
        assert_eq!(ALL.len(), 22);
    }
}
