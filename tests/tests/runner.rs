//! End-to-end tests: the built binary on real input. One binary; a module a feature.

use std::path::{Path, PathBuf};

mod e2e;

#[test]
fn no_test_file_is_forgotten() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e");
    let declared = std::fs::read_to_string(format!("{dir}/mod.rs")).expect("mod.rs is there");
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let name =
            entry.expect("a directory can be listed").file_name().into_string().expect("names are UTF-8");
        let module = name.trim_end_matches(".rs");
        assert!(
            module == "mod" || declared.contains(&format!("mod {module};")),
            "mod.rs lacks `mod {module};`"
        );
    }
}

#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = String::new();
    for member in ["image", "solver", "store", "frontend", "worker", "builder", "tests"] {
        for dir in ["src", "tests"] {
            read_below(&workspace.join(member).join(dir), &mut sources);
        }
    }
    let page = std::fs::read_to_string(workspace.join("docs/faults.md")).expect("the page is there");
    // The first table is made by its test.
    let (_, named) = page.split_once("<!-- end -->").expect("the first table has an end");
    let words = named.split('`').skip(1).step_by(2);
    let tests: Vec<&str> =
        words.filter(|word| word.matches('_').count() >= 2 && !word.contains(' ')).collect();
    assert!(tests.len() > 100, "{tests:?}");
    let missing: Vec<&&str> = tests.iter().filter(|test| !sources.contains(&format!("fn {test}("))).collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}

fn read_below(dir: &Path, into: &mut String) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path: PathBuf = entry.expect("a directory can be listed").path();
        if path.is_dir() {
            read_below(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).expect("sources are text"));
        }
    }
}
