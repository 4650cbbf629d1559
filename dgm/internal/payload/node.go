package payload

import (
	"context"
	"log/slog"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
	"github.com/gearsfs/gearsfs/wire"
)

// Config says what a Keeper is made of.
type Config struct {
	// Self is the member that this node is. Data is its data directory, in which
	// the block store has a place; Machine the state, whose rows refer to it.
	Self    gearsfs.MemberID
	Data    *persist.Data
	Machine *file.Machine
	// FS is what the block store is kept in; nil is the operating system's.
	FS    block.FS
	Clock func() time.Time
	// Least is the length from which on a payload goes to the block store.
	Least int
	// ScrubBytesPerSecond bounds what is read in the background to find damage;
	// where it is not above 0 nothing is.
	ScrubBytesPerSecond int64
	// Offline says that the other nodes can't be asked.
	Offline bool
	Log     *slog.Logger

	Node    Node
	Members Members
	// Busy ends when the node begins to close, Root when it is closed.
	Busy, Root context.Context
	// Reads holds one for each bulky query that reads.
	Reads chan struct{}
}

// Node is what a Keeper asks of its own node. All methods are safe for concurrent
// use.
type Node interface {
	// Full says that the disk has no room for what could be refused.
	Full() bool
	// Spawn runs f on a goroutine that ends before the Keeper is closed; not, and
	// then it returns false, where the node is closing.
	Spawn(f func()) bool
	// Certain returns when all that was committed before is in the state.
	Certain(ctx context.Context) error
	// Durable is up to where the log is on this node's disk.
	Durable() gearsfs.Index
	// Fatal is told that the node can't go on.
	Fatal(err error)
}

// Members are the nodes of the volume, for a Keeper of one of them. All methods
// are safe for concurrent use.
type Members interface {
	// Alone says that there is no other one; also while it is not known, which is
	// before anything is uploaded.
	Alone() bool
	// Others are all but this node, in order.
	Others() []gearsfs.MemberID
	// Quorums are those with a vote: of each of the sets a majority must have what
	// is not to be lost. There is one, or two while the voters change. They are
	// not to be changed.
	Quorums() [][]gearsfs.MemberID
	// Carry has another member answer the request that start begins on a
	// connection to it. It waits for the answer, or until ctx ends. The error may
	// be one that the member has answered with.
	Carry(ctx context.Context, to gearsfs.MemberID, start Start) (*wire.Response, error)
}

// Start begins a request on a connection; done is called once.
type Start func(conn *transport.Conn, done func(answer []byte, err error)) *transport.Pending
