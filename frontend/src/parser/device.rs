//! `RUN --device`: `[name=]vendor/class[=device][,required[=bool]]`.

use crate::ast::{Device, Word};
use crate::diagnostic::Diagnostic;
use crate::suggest;
use crate::value::{boolean, fields};

/// Reads one value. Whether there is such a device is not asked here.
pub(super) fn parse(word: &Word) -> Result<Device, Diagnostic> {
    let error = |message: String| Diagnostic::error("device", word.span, message);
    let fields =
        fields(&word.value).map_err(|reason| error(format!("failed to parse csv devices: {reason}")))?;
    let mut device = Device { name: String::new(), required: false, span: word.span };
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                let invalid = || error(format!("invalid value for {key}: {value}"));
                device.required = boolean(value)
                    .ok_or_else(|| invalid().with_help("write required, required=true or required=false"))?;
            }
            ("name", Some(value)) if device.name.is_empty() => value.clone_into(&mut device.name),
            ("name", Some(_)) => return Err(error(format!("device name already set to {}", device.name))),
            // The first field that is no option is the name, as it is.
            _ if device.name.is_empty() => device.name = field,
            (_, None) => {
                let error = error(format!("invalid field '{field}' must be a key=value pair"));
                return Err(suggest::help(error, &key, ["required"]));
            }
            (_, Some(_)) => {
                let error = error(format!("unexpected key '{key}' in '{field}'"));
                return Err(suggest::help(error, &key, ["name", "required"]));
            }
        }
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_name_and_may_be_required() {
        let parse = |text: &str| parse(&Word { value: text.to_owned(), span: Default::default() });
        for (text, name, required) in [
            ("vendor1.com/device=foo", "vendor1.com/device=foo", false),
            ("vendor1.com/device=foo,required", "vendor1.com/device=foo", true),
            ("vendor1.com/device=foo,Required=1", "vendor1.com/device=foo", true),
            ("vendor1.com/device=foo,required=false", "vendor1.com/device=foo", false),
            ("required,name=vendor1.com/device=foo", "vendor1.com/device=foo", true),
            ("vendor1.com/device", "vendor1.com/device", false),
            ("vendor1.com/device=*", "vendor1.com/device=*", false),
            ("\"vendor1.com/device=a,b\"", "vendor1.com/device=a,b", false),
            ("", "", false),
        ] {
            let device = parse(text).unwrap();
            assert_eq!((device.name.as_str(), device.required), (name, required), "{text}");
        }
        for (text, message) in [
            ("v.com/d=a,name=v.com/d=b", "device name already set to v.com/d=a"),
            ("v.com/d=a,required=maybe", "invalid value for required: maybe"),
            ("v.com/d=a,v.com/d=b", "unexpected key 'v.com/d' in 'v.com/d=b'"),
            ("v.com/d=a,requird", "invalid field 'requird' must be a key=value pair"),
            ("v.com/d=\"a", "failed to parse csv devices: bare \" in field"),
        ] {
            assert_eq!(parse(text).unwrap_err().message, message, "{text}");
        }
        assert_eq!(parse("v.com/d=a,requird").unwrap_err().help.as_deref(), Some("did you mean required?"));
    }
}
