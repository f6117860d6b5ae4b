//! `holdfast store export`

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_config::state::VolumeRecord;
use holdfast_runtime::Runtime;
use holdfast_runtime::host::write_atomically;
use holdfast_store::inspect::{ExportedBlock, SliceSummary, Trust, VolumeReader};
use serde::Serialize;

use super::image_map::ImageMap;
use super::{Looked, progress_bar};
use crate::cli::ExportArgs;
use crate::commands::word;
use crate::failure::Failure;
use crate::output::{About, Rows, print};
use crate::quantity::show_size;

const BLOCK_BYTES: u64 = 4096;

/// What was exported.
#[derive(Serialize)]
struct Summary {
    volume: u64,
    size_bytes: u64,
    image: PathBuf,
    map: PathBuf,
    sound_bytes: u64,
    doubtful_bytes: u64,
    unreadable_bytes: u64,
    missing_bytes: u64,
    slices: Vec<Slice>,
}

#[derive(Serialize)]
struct Slice {
    #[serde(flatten)]
    found: SliceSummary,
    /// Nodes whose copies counted, as this node last knew.
    in_sync_nodes: Vec<u64>,
}

pub(super) async fn run(runtime: Runtime, args: &ExportArgs) -> Result<(), Failure> {
    let looked = Looked::open(runtime, &args.place).await?;
    refuse_inside(&args.file, &args.place.data)?;
    let (volume, record) = looked.find_volume(&args.volume).await?;
    let bar = progress_bar();
    bar.set_message("segments");
    let reader = looked
        .inspection
        .volume(volume, &|done| bar.set_position(done))
        .await;
    let slices = reader.slices();
    if slices.is_empty() {
        return Err(Failure::Usage(format!(
            "this node has nothing of volume {volume}. `holdfast store dump {} facts` lists what \
             it has",
            args.place.data.display()
        )));
    }
    let highest = slices.iter().map(|one| u64::from(one.slice) + 1).max();
    let size = args
        .size
        .or(record.as_ref().map(|record| record.size_bytes))
        .unwrap_or(highest.unwrap_or(0) * reader.slice_bytes());
    let mut image = Image::open(&args.file, size)?;
    bar.set_message("slices");
    bar.set_length(slices.len() as u64);
    for (summary, done) in slices.iter().zip(0..) {
        bar.set_position(done);
        image.take(&reader, summary.slice).await?;
        image.save(volume, &slices)?;
    }
    bar.finish_and_clear();
    let [sound, doubtful, unreadable, missing] = image.map.sums();
    let summary = Summary {
        volume,
        size_bytes: image.map.size(),
        image: image.path.clone(),
        map: image.map_path.clone(),
        sound_bytes: sound,
        doubtful_bytes: doubtful,
        unreadable_bytes: unreadable,
        missing_bytes: missing,
        slices: slices
            .into_iter()
            .map(|found| Slice {
                in_sync_nodes: in_sync(record.as_ref(), found.slice),
                found,
            })
            .collect(),
    };
    let done = format!("{} is written", summary.image.display());
    print(About::Change(&done), args.output, &summary, rows(&summary))?;
    if sound == summary.size_bytes {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "of {} are {} sound, {} doubtful, {} unreadable and {} not on this node; {} says which",
        show_size(summary.size_bytes),
        show_size(sound),
        show_size(doubtful),
        show_size(unreadable),
        show_size(missing),
        summary.map.display()
    )))
}

fn rows(summary: &Summary) -> Rows {
    let row = |slice: &Slice| {
        let nodes: Vec<String> = slice.in_sync_nodes.iter().map(u64::to_string).collect();
        vec![
            format!("{}/{}", summary.volume, slice.found.slice),
            slice.found.copy.to_owned(),
            slice.found.last_seq.to_string(),
            nodes.join(" "),
            word(slice.found.trust),
        ]
    };
    Rows {
        columns: vec![
            "slice",
            "copy",
            "last record",
            "in sync on",
            "worth at best",
        ],
        rows: summary.slices.iter().map(row).collect(),
    }
}

fn in_sync(record: Option<&VolumeRecord>, slice: u32) -> Vec<u64> {
    let slice = record.and_then(|record| record.slices.get(slice));
    slice.map_or_else(Vec::new, |slice| {
        slice.in_sync().map(|node| node.0).collect()
    })
}

/// Nothing is written to the directory that is looked at.
fn refuse_inside(file: &Path, directory: &Path) -> Result<(), Failure> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let folder = parent
        .canonicalize()
        .map_err(|error| Failure::Usage(format!("{}: {error}", parent.display())))?;
    let directory = directory.canonicalize().map_err(Failure::of)?;
    if folder.starts_with(&directory) {
        return Err(Failure::Usage(format!(
            "{} lies in the node's directory, in which nothing is changed. Write it elsewhere",
            file.display()
        )));
    }
    Ok(())
}

/// An image and its map.
struct Image {
    path: PathBuf,
    map_path: PathBuf,
    file: File,
    map: ImageMap,
}

impl Image {
    /// A new image, or the one that an earlier export began.
    fn open(path: &Path, size: u64) -> Result<Self, Failure> {
        let mut map_path = path.as_os_str().to_owned();
        map_path.push(".map");
        let map_path = PathBuf::from(map_path);
        let earlier = match std::fs::read_to_string(&map_path) {
            Ok(text) => Some(ImageMap::parse(&text).ok_or_else(|| {
                Failure::Usage(format!("{} is no map of an image", map_path.display()))
            })?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Failure::Usage(format!("{}: {error}", map_path.display())));
            }
        };
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::Usage(format!(
                "{} exists and has no map beside it: it is not overwritten",
                path.display()
            )),
            ErrorKind::NotFound => Failure::Usage(format!(
                "{} is gone, but its map is there: remove {} to begin anew",
                path.display(),
                map_path.display()
            )),
            _ => Failure::Usage(format!("{}: {error}", path.display())),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match &earlier {
            None => options.create_new(true).open(path),
            Some(_) => options.open(path),
        };
        let file = file.map_err(failed)?;
        let mut map = ImageMap::new(size);
        if let Some(earlier) = earlier {
            if earlier.size() > size {
                map = earlier;
            } else {
                for (at, bytes, trust) in earlier.parts() {
                    map.set(at, bytes, trust);
                }
            }
        }
        file.set_len(map.size()).map_err(Failure::of)?;
        Ok(Self {
            path: path.to_owned(),
            map_path,
            file,
            map,
        })
    }

    /// Takes in what a node has of a slice.
    async fn take(&mut self, reader: &VolumeReader, slice: u32) -> Result<(), Failure> {
        let begin = u64::from(slice) * reader.slice_bytes();
        let end = (begin + reader.slice_bytes()).min(self.map.size());
        let untouched = ExportedBlock {
            trust: reader.untouched(slice),
            data: None,
        };
        let stretches = reader.stretches(slice);
        const STRETCH_BYTES: u64 = 256 * BLOCK_BYTES;
        for at in (begin..end).step_by(STRETCH_BYTES as usize) {
            let first = ((at - begin) / BLOCK_BYTES) as u32;
            let bytes = STRETCH_BYTES.min(end - at);
            if !stretches.contains(&first) {
                self.put_all(at, bytes, &untouched)?;
                continue;
            }
            let blocks = reader.read(slice, first).await;
            for (block, at) in blocks.iter().zip((at..at + bytes).step_by(4096)) {
                self.put(at, block)?;
            }
        }
        Ok(())
    }

    /// Puts the same into many blocks, where it is worth more than what is there.
    fn put_all(&mut self, at: u64, bytes: u64, block: &ExportedBlock) -> Result<(), Failure> {
        let end = at + bytes;
        let parts: Vec<_> = self.map.parts().collect();
        for (from, length, before) in parts {
            let (from, until) = (from.max(at), (from + length).min(end));
            if from >= until || block.trust <= before {
                continue;
            }
            if before == Trust::Doubtful {
                for at in (from..until).step_by(BLOCK_BYTES as usize) {
                    self.put(at, block)?;
                }
            } else {
                self.map.set(from, until - from, block.trust);
            }
        }
        Ok(())
    }

    fn put(&mut self, at: u64, block: &ExportedBlock) -> Result<(), Failure> {
        let before = self.map.at(at);
        if block.trust <= before {
            return Ok(());
        }
        let bytes = BLOCK_BYTES.min(self.map.size() - at) as usize;
        match &block.data {
            Some(data) => self.file.write_all_at(&data[..bytes], at),
            // Only a doubtful block has left anything there.
            None if before == Trust::Doubtful => self.file.write_all_at(&[0; 4096][..bytes], at),
            None => Ok(()),
        }
        .map_err(|error| Failure::Failed(format!("{}: {error}", self.path.display())))?;
        self.map.set(at, bytes as u64, block.trust);
        Ok(())
    }

    /// Makes durable what was taken in, then says so.
    fn save(&self, volume: u64, slices: &[SliceSummary]) -> Result<(), Failure> {
        self.file.sync_all().map_err(Failure::of)?;
        let mut about = format!("volume {volume}");
        for slice in slices {
            about += &format!(
                "\nslice {}: copy {}, last record {}",
                slice.slice, slice.copy, slice.last_seq
            );
        }
        write_atomically(&self.map_path, self.map.to_text(&about).as_bytes()).map_err(Failure::of)
    }
}
