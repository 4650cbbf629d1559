package mount

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount/journal"
)

// A mount outlives the process that serves it. A supervisor keeps the FUSE
// connection and a journal in shared memory, and when the process is gone hands
// both to the next, which
//
//  1. reads the journal (legacy.go): what is open, what was answered, and what
//     was begun;
//  2. goes on with the session of the Manager, under its id and behind its
//     sequence numbers (dgm.Lasting);
//  3. replays the INIT of the first process to go-fuse and takes the connection;
//  4. has the kernel send again what has no reply yet (FUSE_NOTIFY_RESEND).
//
// Each request that comes again has the same unique, so it is known, and is
// done exactly once:
//
//	                 numbered             answered
//	begun ──────────────────────▶ made ──────────────▶ replied
//	  │ dies: done as if new       │ dies: done again,   │ dies: answered
//	  ▼                            ▼ numbers as before   ▼ from the journal
//
// The entry "numbered" is written before a change is sent and has its number in
// the session; the volume answers a number that it knows with the first answer.
// The entry "answered" is written when the handler returns, holds the reply and
// all that the request changed here, and so is one step. Only then may the
// volume forget the numbers' answers.
//
// The reply of a request is kept until repliesMax others have been answered:
// go-fuse writes it when the handler has returned, but does not say when. Reads
// and lookups leave no entry: done again they are the same.
type keeper struct {
	log   *slog.Logger
	names string // begins names that no other mount makes

	mu      sync.Mutex // not held over calls to the Manager
	journal *journal.Log
	compact int  // at this size of the journal
	broken  bool // it can't be written any more
	failed  func(error)
	left    map[uint64]*request // of processes before, that have not come again
}

// request is what is known of one that was begun by a process before.
type request struct {
	numbers  []dgm.Numbered
	answered bool
	status   fuse.Status
	reply    []byte
}

const (
	// resent is the bit of a unique by which the kernel marks what it sends again
	// (FUSE_UNIQUE_RESEND in include/uapi/linux/fuse.h).
	resent = 1 << 63

	repliesMax    = 4096
	replyBytesMax = 8 << 20 // of all of them, but for the last repliesMin
	repliesMin    = 64
	compactMin    = 8 << 20
	resentWithin  = 30 * time.Second // after that what was begun is not sent again
)

// Kinds of entries.
const (
	entryBirth    = 'b' // the connection: see birth
	entrySession  = 's'
	entryHeir     = 'h' // another process has taken over
	entryNumbered = 'n'
	entryAnswered = 'a'
	entryForgone  = 'f'
)

// add adds an entry. Where it can't, nobody may take the mount over from now on.
func (k *keeper) add(parts ...[]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken {
		return
	}
	err := k.journal.Add(parts...)
	if k.journal.Size() > k.compact || errors.Is(err, journal.ErrFull) {
		if compactErr := k.compactLocked(); err != nil && compactErr == nil {
			err = k.journal.Add(parts...)
		} else if compactErr != nil {
			err = errors.Join(err, compactErr)
		}
	}
	if err != nil {
		k.broken = true
		k.log.Error("the mount can't be taken over by another process any more", "err", err)
		k.failed(err)
	}
}

// compactAt is at which size a journal that is compact now is to be made so again.
func compactAt(j *journal.Log) int { return compactMin + 2*j.Size() }

// compactLocked leaves in the journal only what still matters.
func (k *keeper) compactLocked() error {
	l, err := readLegacy(k.journal)
	if err == nil {
		err = k.journal.Replace(l.write)
	}
	k.compact = compactAt(k.journal)
	return err
}

// noteSession is dgm.Lasting.Note.
func (k *keeper) noteSession(id gearsfs.SessionID, seqs uint64) {
	k.add(sessionEntry(id, seqs))
}

func sessionEntry(id gearsfs.SessionID, seqs uint64) []byte {
	return encode(start(entrySession), uint64(id.Minted), id.Salt, seqs)
}

func numberedEntry(unique uint64, n dgm.Numbered) []byte {
	return encode(start(entryNumbered), unique, uint64(n.Session.Minted), n.Session.Salt, uint64(n.Kind), n.Seq)
}

func answeredEntry(unique uint64, status fuse.Status, reply []byte) []byte {
	return encodeBytes(encode(append(make([]byte, 0, 32+len(reply)), entryAnswered), unique, uint64(uint32(status))), reply)
}

// entrance is what go-fuse calls: it makes a call of each request. What may
// change something is done once, however often it comes.
type entrance struct{ *server }

// begin is the start of a request whose handler changes nothing that a next
// process must know.
func (e entrance) begin(in *fuse.InHeader, cancel <-chan struct{}) *call {
	c := &call{unique: in.Unique &^ resent, cancel: cancel}
	c.server = server{shared: e.shared, call: c, ctx: c}
	e.calls.add(c)
	c.unsent = c.settleFor(in)
	return c
}

// beginOnce is the start of a request that is to be done once. Where c.known it
// was answered before, and c.status and reply are the answer.
func (e entrance) beginOnce(in *fuse.InHeader, cancel <-chan struct{}, reply []byte) *call {
	c := e.begin(in, cancel)
	k := e.keeper
	if k == nil {
		return c
	}
	c.reply = reply
	c.once.Record = func(n dgm.Numbered) {
		c.numbered = true
		k.add(numberedEntry(c.unique, n))
	}
	if in.Unique&resent == 0 {
		return c
	}
	k.mu.Lock()
	r := k.left[c.unique]
	delete(k.left, c.unique)
	k.mu.Unlock()
	if r == nil {
		return c
	}
	if c.known = r.answered; c.known {
		c.status = r.status
		copy(reply, r.reply)
		c.reply = r.reply
		return c
	}
	c.numbered = len(r.numbers) > 0
	c.once.Before = r.numbers
	return c
}

// leave is the end of a request.
func (c *call) leave() {
	for _, t := range c.turns {
		t.end()
	}
	c.calls.remove(c)
}

// endTurn ends a turn, or a giving, with the request.
func (s *server) endTurn(t ender) {
	if s.call == nil {
		t.end()
		return
	}
	s.call.turns = append(s.call.turns, t)
}

// answer notes what the request is answered with, and returns it. An
// interruption is never the answer where something was changed, or may have been
// by a process before.
func (c *call) answer(st fuse.Status) fuse.Status {
	if st == fuse.EINTR && (c.once.Made() || len(c.once.Before) > 0) {
		st = fuse.EIO
	}
	if c.keeper == nil || !c.numbered && len(c.effects) == 0 {
		return st
	}
	reply := c.reply
	if st != fuse.OK {
		reply = nil
	}
	c.keeper.add(answeredEntry(c.unique, st, reply), c.effects)
	c.once.Done()
	return st
}

// bePatient is for a RELEASE, whose answer nobody waits for: what it changes it does
// when the node is back.
func (s *server) bePatient() {
	if s.call != nil {
		s.call.once.Patient = true
	}
}

// effect adds to what the request has changed here.
func (s *server) effect(e []byte) {
	if s.call != nil && s.keeper != nil {
		s.call.effects = append(s.call.effects, e...)
	}
}

// uniqueName returns a name that no other request of any mount uses, but this one
// each time.
func (s *server) uniqueName() string {
	if s.call == nil || s.keeper == nil {
		return randomName()
	}
	return fmt.Sprintf("%s-%x", s.keeper.names, s.call.unique)
}

// forgo gives up what processes before have begun and the kernel has not sent
// again, as who asked was killed just then: so the volume need not keep its answers,
// and nothing stays leased that nobody knows of.
func (k *keeper) forgo(ctx context.Context, m dgm.Manager) {
	k.mu.Lock()
	left := k.left
	k.left = nil
	k.mu.Unlock()
	for unique, r := range left {
		if r.answered {
			continue
		}
		if err := k.forgoOne(ctx, m, unique, r.numbers); err != nil && ctx.Err() == nil { // the next process tries
			k.log.Warn("what was begun and not sent again may stay leased until the mount ends", "err", err)
		}
	}
}

func (k *keeper) forgoOne(ctx context.Context, m dgm.Manager, unique uint64, numbers []dgm.Numbered) error {
	f, ok := m.(interface {
		Forgo(context.Context, []dgm.Numbered) error
	})
	if ok {
		if err := f.Forgo(ctx, numbers); err != nil {
			return err
		}
	}
	k.add(encode(start(entryForgone), unique))
	return nil
}

// forgoTakes gives back what the request may have taken in a process before: from
// then on it is as new.
func (s *server) forgoTakes() error {
	c := s.call
	err := s.keeper.forgoOne(s.life, s.m, c.unique, c.once.Before)
	if err == nil {
		c.once.Before = nil
	}
	return err
}

// bytesOf is the memory of a reply.
func bytesOf[T any](out *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(out)), unsafe.Sizeof(*out))
}

// start begins an entry or an effect of some kind.
func start(kind byte) []byte { return append(make([]byte, 0, 48), kind) }

func encode(b []byte, values ...uint64) []byte {
	for _, v := range values {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func encodeBytes(b, data []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}

var errEntry = errors.New("the journal has an entry that can't be read")

// decoder reads what encode wrote. After the first error all is zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errEntry
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte { return bytes.Clone(d.view()) }

// view is bytes that are the journal's.
func (d *decoder) view() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.b, d.err = nil, errEntry
		return nil
	}
	data := d.b[:n]
	d.b = d.b[n:]
	return data
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) kind() byte {
	if len(d.b) == 0 {
		d.err = errEntry
		return 0
	}
	k := d.b[0]
	d.b = d.b[1:]
	return k
}

func flag(b bool, bit uint64) uint64 {
	if b {
		return bit
	}
	return 0
}
