//! The OpenAPI document.

use utoipa::OpenApi;

use crate::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast",
        description = "Administration of a Holdfast cluster. Any node answers.",
        license(name = "Apache-2.0 OR MIT")
    ),
    paths(
        routes::cluster,
        routes::found,
        routes::add_token,
        routes::balance,
        routes::change_balance,
        routes::copy_balance,
        routes::move_copies,
        routes::own_report,
        routes::nodes,
        routes::node,
        routes::evict,
        routes::drain_plan,
        routes::drain,
        routes::cancel_drain,
        routes::remove,
        routes::order_scrub,
        routes::forget_stalls,
        routes::volumes,
        routes::slices,
        routes::create_volume,
        routes::volume,
        routes::change_volume,
        routes::rotate_secret,
        routes::move_volume,
        routes::delete_volume,
    )
)]
struct Document;

/// The OpenAPI document of this version, as JSON text.
pub fn document() -> String {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    let mut text = document
        .to_pretty_json()
        .expect("a document of plain types becomes JSON");
    text.push('\n');
    text
}
