package replica

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// Proposal is a command on its way to the state machine. Both it and its
// command belong to the Group from Propose until Done is called, and what the
// command holds may live on in the state machine.
type Proposal struct {
	Command *wire.Command
	// Durable asks that Done waits until the command is on disk, not only
	// written.
	Durable bool
	// Prompt asks that the other members hear at once that the command is
	// committed, because somebody reads its effects there; else that has some
	// milliseconds.
	Prompt bool
	// Done is called exactly once, on a goroutine of the Group, and must not
	// block. The error is not nil where the command was not applied. Before
	// anything was written: gearsfs.ErrNotLeader, gearsfs.ErrOverload,
	// gearsfs.ErrTooBig and gearsfs.ErrClosed; gearsfs.ErrMaybe where this node
	// ceased to lead, or the log failed, while the command was on its way.
	Done func(*wire.Answer, error)
}

// waiting is a proposal in line.
type waiting struct {
	*Proposal
	bytes int  // of its command's encoding
	last  bool // of those proposed together
}

// held counts the proposals that were taken and not answered, so that Propose
// can refuse more.
type held struct {
	commands, bytes atomic.Int64
}

// batch is what becomes one entry.
type batch struct {
	items   []waiting
	entry   wire.Entry
	answers []*wire.Answer // once applied
	held    *held

	begun       time.Duration // by world.elapsed, when it was proposed to raft
	index, term uint64        // of what became of it there
	durable     bool          // one of items is
	prompt      bool          // likewise
}

func newBatch(items []waiting, held *held) *batch {
	b := &batch{items: items, held: held}
	b.entry.Commands = make([]*wire.Command, len(items))
	for i := range items {
		b.entry.Commands[i] = items[i].Command
		b.durable = b.durable || items[i].Durable
		b.prompt = b.prompt || items[i].Prompt
	}
	return b
}

// marshal encodes the entry into buf, or a larger one.
func (b *batch) marshal(buf []byte) ([]byte, error) {
	size := 9 + 1 + binary.MaxVarintLen64 // log time and jump
	for i := range b.items {
		size += b.items[i].bytes + 1 + varintBytes(b.items[i].bytes)
	}
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	n, err := b.entry.MarshalToSizedBufferVT(buf)
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	return buf[size-n:], nil
}

func varintBytes(n int) int {
	bytes := 1
	for ; n >= 0x80; n >>= 7 {
		bytes++
	}
	return bytes
}

// answer answers the proposals that are durable, or those that are not.
func (b *batch) answer(durable bool, err error) {
	count, bytes := 0, 0
	for i := range b.items {
		item := &b.items[i]
		if item.Durable != durable {
			continue
		}
		count++
		bytes += item.bytes
		done := item.Done
		if err != nil {
			done(nil, err)
		} else {
			done(b.answers[i], nil)
		}
	}
	b.held.commands.Add(-int64(count))
	b.held.bytes.Add(-int64(bytes))
}

// refuse answers all proposals of a batch of which nothing was written.
func (b *batch) refuse(err error) {
	b.answer(false, err)
	b.answer(true, err)
}

// checkAnswers holds the state machine to one answer per command.
func (b *batch) checkAnswers() error {
	if len(b.answers) != len(b.items) {
		return gearsfs.ErrIO.Because("the state machine gave %d answers to the %d commands of entry %d", len(b.answers), len(b.items), b.index)
	}
	return nil
}
