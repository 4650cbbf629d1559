package dgm

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// Lasting is what a session is that survives the process which uses it. The
// process writes down what Note and Record say, in a place that it does not take
// with it, and the next one goes on from there: under the same session, and
// where it begins a request again that the dead one had begun, under the same
// sequence numbers. So a change that was made is answered as it was then, and
// not made twice. The zero Lasting, but for Note, begins a session.
//
// The volume keeps such a session for graceLasting, for its next process: what
// it leases stays leased, and what it has open stays.
type Lasting struct {
	Session gearsfs.SessionID
	NextSeq uint64                 // no change has had this seq, or a later one; 0 for a new session
	Attempt uint64                 // more than any hello has had
	Opens   map[gearsfs.Ino]uint64 // how often each inode is open
	Numbers []Numbered             // of requests that are begun and not done
	// Note is called when the session has another id, and before seqs from seqs
	// on are used. It must not block or call the Manager.
	Note func(id gearsfs.SessionID, seqs uint64)
}

// Numbered is one change that a request has made, or has tried to.
type Numbered struct {
	Session gearsfs.SessionID
	Kind    uint32 // of the change; a request makes those of one kind in the same order each time
	Seq     uint64
}

// Takes reports whether the change is a take, which Forgo gives back.
func (n Numbered) Takes() bool { return n.Kind == takeKind }

var takeKind = kindOf(&wire.Command{Op: &wire.Command_Take{}})

// Once makes the changes of one request happen once, though a process that
// takes over begins the request anew. It belongs to one request.
type Once struct {
	// Record is called with each change before it is sent for the first time.
	// It must not block or call the Manager.
	Record func(Numbered)
	// Before are the changes that an earlier process has recorded.
	Before []Numbered
	// Patient says that its changes wait for a lost node for as long as their
	// context lasts.
	Patient bool

	held   []uint64
	remote *Remote
	made   atomic.Bool
}

// Made reports whether a change of the request was made: the request can't be
// said to have done nothing. It does not take a Lasting session.
func (o *Once) Made() bool { return o.made.Load() }

// Repeatable says that what the request has changed so far may stay though the
// request is given up: begun anew it would find that done.
func (o *Once) Repeatable() { o.made.Store(false) }

// made notes that a call has succeeded.
func made(ctx context.Context, req *wire.Request) {
	if req.GetChange() == nil {
		return
	}
	if o, _ := ctx.Value(OnceKey).(*Once); o != nil {
		o.made.Store(true)
	}
}

type onceKey struct{}

// WithOnce returns a context for the calls of a request; it matters to those of
// one Manager with a Lasting session, and only one.
func WithOnce(ctx context.Context, o *Once) context.Context {
	return context.WithValue(ctx, onceKey{}, o)
}

// OnceKey is the key under which a context that is made elsewhere has a *Once.
var OnceKey any = onceKey{}

// Done says that the request will not be begun again: the volume need not keep
// the answers of its changes. Nothing of the request may be under way.
func (o *Once) Done() {
	if o.remote != nil {
		o.remote.release(o.held)
	}
}

// seqsReserved is how many seqs are noted to be in use at once.
const seqsReserved = 1 << 12

// inherit makes the Remote go on with a session.
func (r *Remote) inherit(l *Lasting) {
	r.session = l.Session
	r.calls.nextSeq = max(1, l.NextSeq)
	r.reserved = r.calls.nextSeq
	r.hellos.Store(l.Attempt)
	maps.Copy(r.opens, l.Opens)
	for _, s := range l.Numbers {
		if s.Session == l.Session {
			r.calls.held = append(r.calls.held, s.Seq)
		}
	}
	slices.Sort(r.calls.held)
	r.noted = l.Session
}

// noteSessionLocked writes down which session this is.
func (r *Remote) noteSessionLocked() {
	if l := r.opts.Lasting; l != nil && r.noted != r.session {
		r.noted = r.session
		l.Note(r.session, r.reserved)
	}
}

// numberLocked gives a change of a lasting session its seq: the one that it had
// when an earlier process made it, else the next.
func (r *Remote) numberLocked(ctx context.Context, c *remoteCall) error {
	l, change := r.opts.Lasting, c.req.GetChange()
	if l == nil || change == nil {
		return nil
	}
	if r.calls.nextSeq >= r.reserved {
		r.reserved = r.calls.nextSeq + seqsReserved
		l.Note(r.session, r.reserved)
	}
	o, _ := ctx.Value(OnceKey).(*Once)
	if o == nil {
		return nil
	}
	o.remote = r
	kind := kindOf(change.Command)
	if i := slices.IndexFunc(o.Before, func(s Numbered) bool { return s.Kind == kind }); i >= 0 {
		before := o.Before[i]
		o.Before = slices.Delete(o.Before, i, i+1)
		if before.Session != r.session {
			return gearsfs.ErrMaybe.Because("the session was lost: the change may have been made")
		}
		c.seq, c.sent, c.maybe = before.Seq, true, true
		o.held = append(o.held, before.Seq)
		return nil
	}
	o.Record(Numbered{Session: r.session, Kind: kind, Seq: r.calls.nextSeq})
	o.held = append(o.held, r.calls.nextSeq)
	r.calls.held = append(r.calls.held, r.calls.nextSeq) // the highest so far
	return nil
}

// begun reports whether an earlier process may have made the change that a request
// asks for. Though who asks has stopped waiting by now, it can't be told that
// nothing was done: the call is made again and its outcome waited for.
func (r *Remote) begun(ctx context.Context, req *wire.Request) bool {
	change := req.GetChange()
	if r.opts.Lasting == nil || change == nil {
		return false
	}
	o, _ := ctx.Value(OnceKey).(*Once)
	if o == nil || len(o.Before) == 0 {
		return false
	}
	kind := kindOf(change.Command)
	return slices.ContainsFunc(o.Before, func(s Numbered) bool { return s.Kind == kind })
}

// release lets the volume forget the answers of changes.
func (r *Remote) release(seqs []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seq := range seqs {
		if i, ok := slices.BinarySearch(r.calls.held, seq); ok {
			r.calls.held = slices.Delete(r.calls.held, i, i+1)
		}
	}
}

// Forgo gives up changes that an earlier process has begun, whose requests nobody
// begins again: the volume may forget their answers. What they leased goes back, as
// nobody knows of it. Where that fails it is to be done again.
func (r *Remote) Forgo(ctx context.Context, steps []Numbered) error {
	seqs := make([]uint64, len(steps))
	for i, s := range steps {
		if seqs[i] = s.Seq; !s.Takes() {
			continue
		}
		if err := r.giveBack(ctx, s); err != nil {
			return err
		}
	}
	r.release(seqs)
	return nil
}

// giveBack returns what a take has leased. A command that does nothing, under the
// take's number, is answered as the take was, in the log or by the streams in memory;
// or, where there was none, keeps it from ever being made.
func (r *Remote) giveBack(ctx context.Context, take Numbered) error {
	nothing := &wire.Command{Op: &wire.Command_Confirm{Confirm: &wire.Confirm{}}}
	take.Kind = kindOf(nothing)
	once := WithOnce(ctx, &Once{Before: []Numbered{take}})
	resp, err := r.call(once, &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Command: nothing}}})
	switch receipts := leases(resp.GetAnswer()); {
	case errors.Is(err, gearsfs.ErrMaybe) && r.Session() != take.Session: // its leases went with it
		return nil
	case err != nil || receipts == nil:
		return err
	default:
		back := &wire.Command{Op: &wire.Command_Settle{Settle: &wire.Settle{Return: true, Receipts: receipts}}}
		_, err = r.call(ctx, &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Command: back}}})
	}
	if errors.Is(err, gearsfs.ErrGone) {
		return nil
	}
	return err
}

// Forgo is that of the Remote which a Local is.
func (l *Local) Forgo(ctx context.Context, steps []Numbered) error { return l.remote.Forgo(ctx, steps) }

// kindOf tells the changes of a request from each other: by the number of the field
// that holds them.
func kindOf(c *wire.Command) uint32 { return kinds()[reflect.TypeOf(c.Op)] }

// kinds are the numbers by the types of Command.Op. To ask each message for its own was
// more than a hundredth of what a small write takes.
var kinds = sync.OnceValue(func() map[reflect.Type]uint32 {
	table := make(map[reflect.Type]uint32)
	fields := new(wire.Command).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields()
	for i := range fields.Len() {
		var c wire.Command
		m, field := c.ProtoReflect(), fields.Get(i)
		m.Set(field, m.NewField(field))
		table[reflect.TypeOf(c.Op)] = uint32(field.Number())
	}
	return table
})
