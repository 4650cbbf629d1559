// Package wire is the encoding of what travels and what is stored: requests
// and responses between nodes, commands in the log, and the values of the
// state's tables. The schemas are command.proto, request.proto and row.proto;
// fields are only ever added, never renumbered, so that an older log or peer
// stays readable.
//
// The Go code is generated: `make generate` after a change to a schema.
package wire

//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --go-vtproto_out=. --go-vtproto_opt=paths=source_relative,features=marshal+unmarshal_unsafe+unmarshal+size command.proto request.proto row.proto
