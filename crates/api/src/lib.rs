//! REST /v1 with its OpenAPI document, and the client for it.
#![forbid(unsafe_code)]
