//! The checked-in OpenAPI document is that of the code.

#![allow(clippy::disallowed_methods, reason = "reads a file of the repository")]

#[test]
fn the_checked_in_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let kept = std::fs::read_to_string(path).expect("docs/openapi.json is checked in");
    assert!(
        kept == holdfast_api::document(),
        "docs/openapi.json is not current. Refresh it with\n  \
         cargo run -p holdfast-api --example openapi > docs/openapi.json"
    );
}

#[test]
fn every_path_says_what_goes_wrong_as_a_problem() {
    let document: serde_json::Value = serde_json::from_str(&holdfast_api::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 16);
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{method} {path}");
        }
    }
}
