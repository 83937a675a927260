//! `STORED AS MONGODB` against a real server that speaks its protocol: FerretDB.

mod reading;
mod streaming;
mod writing;
