// Package file is a volume's deterministic state machine: directories, files
// as red-black trees from key to stream, attributes, links, extended
// attributes, files that are open without a name, and sessions with their last
// answers.
package file
