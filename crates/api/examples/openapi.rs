//! Prints the OpenAPI document: `cargo run -p holdfast-api --example openapi > docs/openapi.json`.

fn main() {
    print!("{}", holdfast_api::document());
}
