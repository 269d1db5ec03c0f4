//! Packages as an SPDX 2.3 document.

use image::Digest;
use serde_json::{Value, json};

use super::Found;
use crate::show::rfc3339;

/// The document about an image that has `config`, made at `time`.
pub(crate) fn document(found: &Found, name: &str, config: &Digest, time: i64) -> Value {
    let Found { packages, unread } = found;
    let id = |number: usize| format!("SPDXRef-Package-{number}");
    let mut listed = vec![json!({
        "name": name,
        "SPDXID": "SPDXRef-Image",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "primaryPackagePurpose": "CONTAINER",
    })];
    listed.extend(packages.iter().enumerate().map(|(number, package)| {
        json!({
            "name": package.name,
            "SPDXID": id(number),
            "versionInfo": package.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "sourceInfo": format!("found in {}", package.found_in),
            "licenseConcluded": "NOASSERTION",
            // What packages say is often no SPDX expression, which is all that is allowed here.
            "licenseDeclared": "NOASSERTION",
            "licenseComments": package.license.clone().unwrap_or_default(),
            "copyrightText": "NOASSERTION",
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package.url,
            }],
        })
    }));
    let mut relations = vec![json!({
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    })];
    relations.extend((0..packages.len()).map(|number| {
        json!({
            "spdxElementId": "SPDXRef-Image",
            "relationshipType": "CONTAINS",
            "relatedSpdxElement": id(number),
        })
    }));
    let mut creation = json!({
        "created": rfc3339(time),
        "creators": [format!("Tool: rbuild-{}", env!("CARGO_PKG_VERSION"))],
    });
    if !unread.is_empty() {
        creation["comment"] = json!(format!("not complete: {}", unread.join("; ")));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("urn:rbuild:sbom:{}", config.hex()),
        "creationInfo": creation,
        "packages": listed,
        "relationships": relations,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Package;
    use super::*;

    #[test]
    fn a_document_has_what_spdx_wants() {
        let package = Package {
            name: "musl".to_owned(),
            version: "1".to_owned(),
            url: "pkg:apk/alpine/musl@1".to_owned(),
            license: Some("MIT".to_owned()),
            found_in: "/lib/apk/db/installed".to_owned(),
        };
        let found = Found { packages: vec![package], unread: vec!["/x is odd".to_owned()] };
        let document = document(&found, "x:1", &Digest::of(b"c"), 0);
        for key in ["spdxVersion", "dataLicense", "SPDXID", "name", "documentNamespace", "creationInfo"] {
            assert!(!document[key].is_null(), "{key}");
        }
        assert_eq!(document["creationInfo"]["comment"], "not complete: /x is odd");
        assert_eq!(document["packages"][1]["externalRefs"][0]["referenceLocator"], "pkg:apk/alpine/musl@1");
        assert_eq!(document["relationships"][1]["relatedSpdxElement"], document["packages"][1]["SPDXID"]);
    }
}
