// Package memory does what is asked of streams whose records are in memory
// (--store memory): a Machine is to them what file.Machine is to the others, without
// a log. It knows no waiting and no connections; who waits is told through Node when
// something has changed.
package memory
