//! Values as Go's libraries read them: comma-separated fields, booleans.

/// The fields of one line of CSV: a field may stand in double quotes, which are doubled inside it.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, &'static str> {
    const EXTRANEOUS: &str = "extraneous or missing \" in field";
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let Some(end) = rest.find('"') else { return Err(EXTRANEOUS) };
                field.push_str(&rest[..end]);
                rest = &rest[end + 1..];
                match rest.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        rest = more;
                    }
                    None => break,
                }
            }
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(EXTRANEOUS);
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
            if field.contains('"') {
                return Err("bare \" in field");
            }
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// Go's `strconv.ParseBool`.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_csv() {
        assert_eq!(fields(r#"a=b,"c=d,""e""",f"#).unwrap(), ["a=b", r#"c=d,"e""#, "f"]);
        assert!(fields(r#""a"#).is_err() && fields(r#"a"b"#).is_err() && fields(r#""a"b"#).is_err());
    }
}
