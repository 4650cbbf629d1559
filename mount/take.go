package mount

import (
	"context"
	"errors"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// turn lets the reads of one handle go one after another; one that waits for
// its turn can be interrupted as one that waits for a record can.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) begin(ctx context.Context) error {
	if t.try() { // though it was interrupted: it may have begun in an earlier process
		return nil
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) end() { <-t }

// try begins it where that need not be waited for.
func (t turn) try() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// taker is an open `take` or `peek`. Its first read waits for a record; the
// reads after it hand out the record's bytes, then end of file, for good. A
// take leases:
//
//	        first read         last byte read, and end of file asked for
//	waiting ──────────► leased ─────────────────────────► acknowledged
//	   ▲  │ sealed and     │ last close: acknowledged where the last byte was
//	   └──┘ drained: end   └ read and no signal ends the reader, else returned
//
// A reader that is killed may never have got what it was answered, so only
// what comes after the answer acknowledges.
type taker struct {
	at    place
	takes bool // else it peeks

	turn   turn // guards what follows
	record *gearsfs.Record
	sent   int  // bytes of it
	ended  bool // nothing is leased any more
	dying  bool // whoever closed last was dying by a signal
}

var _ handle = (*taker)(nil)

func newTaker(p place, takes bool) *taker {
	return &taker{at: p, takes: takes, turn: newTurn()}
}

func (t *taker) read(s *server, cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) ([]byte, fuse.Status) {
	ctx, stop := s.waiting(cancel)
	defer stop()
	if err := t.begin(ctx, s); err != nil {
		return nil, status(err)
	}
	defer s.endTurn(t.turn)
	if t.record == nil && !t.ended {
		err := t.fetch(ctx, s, in.Flags&unix.O_NONBLOCK != 0)
		if errors.Is(err, gearsfs.ErrEnd) {
			t.ended = true
			s.effect(takerEffect(in.Fh, t, false))
		} else if err != nil {
			return nil, status(err)
		}
	}
	if t.ended {
		return nil, fuse.OK
	}
	first := t.sent == 0
	data := t.record.Data[t.sent:]
	data = data[:min(len(data), int(in.Size))]
	t.sent += len(data)
	if len(data) > 0 || in.Size == 0 {
		s.effect(takerEffect(in.Fh, t, first))
		return data, fuse.OK
	}
	err := t.settle(s, true)
	s.effect(takerEffect(in.Fh, t, false))
	return nil, gone(err)
}

// begin begins a read's turn. One that is sent again to the next process may have
// leased a record in the one before. Where another read has gone on with the handle
// meanwhile, which may be waiting for that record, it goes back to its place.
func (t *taker) begin(ctx context.Context, s *server) error {
	got := t.turn.try()
	if s.call == nil || len(s.call.once.Before) == 0 {
		if got {
			return nil
		}
		return t.turn.begin(ctx)
	}
	switch took := slices.ContainsFunc(s.call.once.Before, dgm.Numbered.Takes); {
	case got && (!took || t.record == nil && !t.ended):
		return nil
	case took:
		if err := s.forgoTakes(); err != nil {
			if got {
				t.turn.end()
			}
			return err
		}
	default: // it may have acknowledged, as the other is about to
		ctx = s.life
	}
	if got {
		return nil
	}
	return t.turn.begin(ctx)
}

// fetch waits for a record.
func (t *taker) fetch(ctx context.Context, s *server, noWait bool) error {
	f, err := s.fileAt(t.at)
	if err != nil {
		return err
	}
	var records []gearsfs.Record
	if t.takes {
		records, err = s.m.Take(ctx, dgm.Take{File: f, Keys: []gearsfs.Key{t.at.key}, Max: 1, NoWait: noWait, Lease: true})
	} else {
		records, err = s.m.Peek(ctx, dgm.Peek{File: f, Key: t.at.key, Max: 1, NoWait: noWait})
	}
	if err != nil {
		return err
	}
	if len(records) != 1 {
		return gearsfs.ErrIO.Because("asked for one record, got %d", len(records))
	}
	t.record = &records[0]
	if t.takes {
		s.touched(t.record.Receipt.Ino, t.at.key)
	}
	return nil
}

// settle ends the lease, if there is one. When it returns nil that is on disk. Until
// the volume has said that it is over the lease stays the handle's, for whoever reads
// again, or closes it.
func (t *taker) settle(s *server, acknowledge bool) (err error) {
	if t.takes && t.record != nil {
		receipt := *t.record.Receipt
		err = s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{receipt}, Return: !acknowledge})
		if err != nil && !errors.Is(err, gearsfs.ErrGone) {
			return err
		}
		if err == nil {
			s.touched(receipt.Ino, t.at.key)
		}
	}
	t.ended, t.record = true, nil
	return err
}

func (t *taker) write(*server, <-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, fuse.EBADF
}

func (t *taker) flush(s *server, in *fuse.FlushIn) fuse.Status {
	// A read that waits has its turn, and with it no lease: a close by
	// another process must not wait for it.
	select {
	case t.turn <- struct{}{}:
		defer s.endTurn(t.turn)
	default:
		return fuse.OK
	}
	if t.takes && t.record != nil {
		t.dying = processOf(in.Pid).dying
		s.effect(takerEffect(in.Fh, t, false))
	}
	return fuse.OK
}

func (t *taker) release(s *server) {
	if t.record == nil {
		return
	}
	s.bePatient()
	delivered := t.sent == len(t.record.Data) && !t.dying
	if err := t.settle(s, delivered); err != nil && !errors.Is(err, gearsfs.ErrClosed) && !errors.Is(err, gearsfs.ErrGone) {
		s.log.Error("a lease could not be settled", "key", t.at.key, "acknowledge", delivered, "err", err)
	}
}

// replay is an open `all`: the records that were there at its first read, in
// order, their bytes one after another.
type replay struct {
	at place

	turn    turn // guards what follows
	begun   bool
	until   gearsfs.Seq // the seq of the first record that is not shown
	after   gearsfs.Seq // that of the last one fetched
	given   gearsfs.Seq // that of the last one read to its end
	part    int         // bytes that were read of the next one
	skip    int         // those of them that a process before has read
	records []gearsfs.Record
	ended   bool // nothing is left to be fetched
}

var _ handle = (*replay)(nil)

func newReplay(p place) *replay { return &replay{at: p, turn: newTurn()} }

// replayRecords is how many records are fetched at once; their bytes are at
// most gearsfs.BatchBytesMax.
const replayRecords = 256

func (r *replay) read(s *server, cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) ([]byte, fuse.Status) {
	ctx, stop := s.waiting(cancel)
	defer stop()
	if err := r.turn.begin(ctx); err != nil {
		return nil, status(err)
	}
	defer s.endTurn(r.turn)
	if !r.begun {
		info, err := s.streamAt(r.at)
		if err != nil {
			return nil, gone(err)
		}
		r.begun, r.until = true, info.Tail.Seq
	}
	out := make([]byte, 0, in.Size)
	for len(out) < cap(out) {
		if len(r.records) == 0 {
			if err := r.fetch(s); err != nil {
				return nil, gone(err)
			}
			if len(r.records) == 0 {
				break
			}
		}
		data := r.records[0].Data
		n := min(len(data), cap(out)-len(out))
		out = append(out, data[:n]...)
		r.part += n
		if r.records[0].Data = data[n:]; n == len(data) {
			r.given, r.part = r.records[0].Place.Seq, 0
			r.records = r.records[1:]
		}
	}
	s.effect(replayEffect(in.Fh, r))
	return out, fuse.OK
}

// fetch reads the next records, none at the end.
func (r *replay) fetch(s *server) error {
	if r.ended {
		return nil
	}
	f, err := s.fileAt(r.at)
	if err != nil {
		return err
	}
	records, err := s.m.Peek(s.ctx, dgm.Peek{File: f, Key: r.at.key, Max: replayRecords, NoWait: true, Follow: true, After: r.after})
	if errors.Is(err, gearsfs.ErrEmpty) || errors.Is(err, gearsfs.ErrEnd) || errors.Is(err, gearsfs.ErrNotFound) {
		r.ended = true
		return nil
	}
	if err != nil {
		return err
	}
	for i := range records {
		if records[i].Place.Seq >= r.until {
			r.ended = true
			records = records[:i]
			break
		}
		r.after = records[i].Place.Seq
	}
	if len(records) > 0 && r.skip > 0 {
		records[0].Data = records[0].Data[min(r.skip, len(records[0].Data)):]
		r.skip = 0
	}
	r.records = records
	return nil
}

func (r *replay) write(*server, <-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, fuse.EBADF
}

func (r *replay) flush(*server, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (r *replay) release(*server) {}
