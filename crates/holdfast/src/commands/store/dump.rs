//! `holdfast store dump`

use holdfast_runtime::Runtime;
use holdfast_store::inspect::{Cell, Filter, Structure};

use super::Looked;
use crate::cli::{DumpArgs, DumpWhat};
use crate::failure::Failure;
use crate::output::{About, Rows, print};
use crate::standard::tell;

pub(super) async fn run(runtime: Runtime, args: &DumpArgs) -> Result<(), Failure> {
    let looked = Looked::open(runtime, &args.place).await?;
    let filter = Filter {
        volume: args.volume,
        slice: args.slice,
        block: args.block,
        segment: args.segment,
        limit: args.limit,
    };
    let what = match args.what {
        DumpWhat::Header => Structure::Header,
        DumpWhat::Journal => Structure::Journal,
        DumpWhat::Map => Structure::Map,
        DumpWhat::Segments => Structure::Segments,
        DumpWhat::Facts => Structure::Facts,
        DumpWhat::Manifest => Structure::Manifest,
    };
    let listing = looked.inspection.dump(what, &filter).await;
    let words = |row: &Vec<Cell>| row.iter().map(Cell::to_string).collect();
    let rows = Rows {
        columns: listing.columns.clone(),
        rows: listing.rows.iter().map(words).collect(),
    };
    print(About::Look, args.output, &listing, rows)?;
    if listing.cut {
        tell(&format!(
            "There are more than {} rows: see --limit",
            args.limit
        ));
    }
    Ok(())
}
