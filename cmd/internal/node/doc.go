// Package node is a GearsFS node in this process, as the daemon runs it and as
// `gearsfs mount` embeds it: a volume on a data directory, served on sockets.
// It is where all the rooms of the house are wired together.
package node
