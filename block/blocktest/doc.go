// Package blocktest has file systems for tests of what stands on a block store:
// one in memory that can lose its power, one that fails on demand, and a suite
// that every block.FS passes.
package blocktest
