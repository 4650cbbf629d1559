package dgm

import (
	"context"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// caller carries a request to a volume and brings the response back; Local and
// Remote are the two. The error of a response is returned as such, so a nil
// error comes with a response that says success.
type caller interface {
	call(ctx context.Context, req *wire.Request) (*wire.Response, error)
}

// api turns the calls of Manager into requests. Local and Remote embed it, so
// that both mean the same by each of them.
type api struct{ cluster }

// contentBytesMax bounds what one Read or Write carries.
const contentBytesMax = 1 << 20

func (a api) change(ctx context.Context, c *wire.Change) (*wire.Answer, error) {
	resp, err := a.call(ctx, &wire.Request{Kind: &wire.Request_Change{Change: c}})
	if err != nil {
		return nil, err
	}
	return resp.Answer, nil
}

// apply sends a command that needs no waiting and no disk.
func (a api) apply(ctx context.Context, cmd *wire.Command) (*wire.Answer, error) {
	return a.change(ctx, &wire.Change{Command: cmd, Fast: true})
}

func (a api) applyAttr(ctx context.Context, cmd *wire.Command) (gearsfs.Attr, error) {
	answer, err := a.apply(ctx, cmd)
	if err != nil {
		return gearsfs.Attr{}, err
	}
	return attrFromWire(answer.Attr), nil
}

func (a api) applyOnly(ctx context.Context, cmd *wire.Command) error {
	_, err := a.apply(ctx, cmd)
	return err
}

// query reads; a fast one may show what is not on disk yet.
func (a api) query(ctx context.Context, q *wire.Query) (*wire.Response, error) {
	return a.call(ctx, &wire.Request{Kind: &wire.Request_Query{Query: q}})
}

func (a api) fast(ctx context.Context, q *wire.Query) (*wire.Response, error) {
	q.Fast = true
	return a.query(ctx, q)
}

func target(f gearsfs.File) (*wire.Target, string, error) {
	switch {
	case f.Ino != 0:
		return &wire.Target{Ino: uint64(f.Ino)}, "", nil
	case len(f.Path) > gearsfs.PathBytesMax:
		return nil, "", gearsfs.ErrNameTooLong
	case f.Path == "" || f.Path[0] != '/':
		return nil, "", gearsfs.ErrInvalid.Because("%q is not an absolute path in the volume", f.Path)
	}
	return nil, f.Path, nil
}

// Put implements Streams.
func (a api) Put(ctx context.Context, p Put) (PutResult, error) {
	op, path, err := putOp(p)
	if err != nil {
		return PutResult{}, err
	}
	return a.put(ctx, &wire.Change{
		Path: path, NoWait: p.NoWait, Command: &wire.Command{Op: &wire.Command_Put{Put: op}},
	})
}

func (a api) put(ctx context.Context, c *wire.Change) (PutResult, error) {
	answer, err := a.change(ctx, c)
	if err != nil {
		return PutResult{}, err
	}
	return putResult(answer), nil
}

func putResult(answer *wire.Answer) PutResult {
	return PutResult{
		Ino: gearsfs.Ino(answer.Ino), First: gearsfs.Seq(answer.FirstSeq), Last: gearsfs.Seq(answer.LastSeq),
	}
}

func putOp(p Put) (*wire.Put, string, error) {
	t, path, err := target(p.File)
	if err != nil {
		return nil, "", err
	}
	records, err := newRecords(p.Key, p.Records)
	if err != nil {
		return nil, "", err
	}
	op := &wire.Put{Target: t, Key: string(p.Key), Records: records, Mode: p.Mode, Seal: p.Seal}
	if !p.At.IsZero() {
		if p.Delay != 0 {
			return nil, "", gearsfs.ErrInvalid.Because("a put has a time or a delay, not both")
		}
		op.At = uint64(max(0, p.At.UnixNano()))
	}
	if op.Delay, err = span(p.Delay); err != nil {
		return nil, "", err
	}
	return op, path, nil
}

// span encodes a duration, which must not be negative.
func span(d time.Duration) (uint64, error) {
	if d < 0 {
		return 0, gearsfs.ErrInvalid.Because("a negative duration: %v", d)
	}
	return uint64(d), nil
}

// newRecords checks what is to be put against the limits on a batch.
func newRecords(key gearsfs.Key, records []gearsfs.NewRecord) ([]*wire.NewRecord, error) {
	if err := key.Check(); err != nil {
		return nil, err
	}
	if len(records) > gearsfs.BatchRecordsMax {
		return nil, gearsfs.ErrTooBig.Because("%d records in one put, at most %d", len(records), gearsfs.BatchRecordsMax)
	}
	var bytes int
	block := make([]wire.NewRecord, len(records))
	out := make([]*wire.NewRecord, len(records))
	for i, r := range records {
		if len(r.Data) > gearsfs.RecordBytesMax {
			return nil, gearsfs.ErrTooBig.Because("a record of %d bytes, at most %d", len(r.Data), gearsfs.RecordBytesMax)
		}
		if len(r.Type) > gearsfs.KeyBytesMax {
			return nil, gearsfs.ErrTooBig.Because("a type name of %d bytes, at most %d", len(r.Type), gearsfs.KeyBytesMax)
		}
		if len(r.ID) > gearsfs.KeyBytesMax {
			return nil, gearsfs.ErrTooBig.Because("an id of %d bytes, at most %d", len(r.ID), gearsfs.KeyBytesMax)
		}
		bytes += len(r.Data)
		block[i].Data, block[i].Type, block[i].Id = r.Data, r.Type, r.ID
		out[i] = &block[i]
	}
	if bytes > gearsfs.BatchBytesMax {
		return nil, gearsfs.ErrTooBig.Because("%d bytes in one put, at most %d", bytes, gearsfs.BatchBytesMax)
	}
	return out, nil
}

// Take implements Streams.
func (a api) Take(ctx context.Context, take Take) ([]gearsfs.Record, error) {
	op, path, err := takeOp(take)
	if err != nil {
		return nil, err
	}
	answer, err := a.change(ctx, &wire.Change{
		Path: path, NoWait: take.NoWait, Command: &wire.Command{Op: &wire.Command_Take{Take: op}},
	})
	if err != nil {
		return nil, err
	}
	return recordsFromWire(answer.Records), nil
}

func takeOp(take Take) (*wire.Take, string, error) {
	t, path, err := target(take.File)
	if err != nil {
		return nil, "", err
	}
	if len(take.Keys) == 0 || len(take.Keys) > takeKeysMax {
		return nil, "", gearsfs.ErrInvalid.Because("a take names 1 to %d keys", takeKeysMax)
	}
	for _, k := range take.Keys {
		if err := k.Check(); err != nil {
			return nil, "", err
		}
	}
	op := &wire.Take{
		Target: t, Keys: keysToWire(take.Keys), Lease: take.Lease, Force: take.Force,
		ByReceipt: take.ByReceipt, Tries: take.Tries,
	}
	if op.Max, err = count(take.Max); err != nil {
		return nil, "", err
	}
	if op.LeaseFor, err = span(take.LeaseFor); err != nil {
		return nil, "", err
	}
	switch {
	case !take.Lease && (take.LeaseFor != 0 || take.ByReceipt || take.Tries != 0):
		return nil, "", gearsfs.ErrInvalid.Because("only a lease has a time, a receipt or tries")
	case take.ByReceipt && take.LeaseFor == 0:
		return nil, "", gearsfs.ErrInvalid.Because("a lease that is held by its receipt needs a time")
	}
	return op, path, nil
}

const takeKeysMax = 64

func count(max int) (uint32, error) {
	switch {
	case max == 0:
		return 1, nil
	case max < 0:
		return 0, gearsfs.ErrInvalid.Because("a count must not be negative")
	}
	return uint32(min(max, gearsfs.BatchRecordsMax)), nil
}

// Peek implements Streams.
func (a api) Peek(ctx context.Context, p Peek) ([]gearsfs.Record, error) {
	t, path, err := target(p.File)
	if err != nil {
		return nil, err
	}
	if err := p.Key.Check(); err != nil {
		return nil, err
	}
	max, err := count(p.Max)
	if err != nil {
		return nil, err
	}
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_Peek{Peek: &wire.Peek{
		Target: t, Path: path, Key: string(p.Key), Max: max, NoWait: p.NoWait,
		Follow: p.Follow, After: uint64(p.After), Last: p.Last, Gone: uint64(p.Gone),
	}}})
	if err != nil {
		return nil, err
	}
	return recordsFromWire(resp.GetAnswer().GetRecords()), nil
}

// Settle implements Streams.
func (a api) Settle(ctx context.Context, s Settle) error {
	op, err := settleOp(s)
	if err != nil {
		return err
	}
	_, err = a.change(ctx, &wire.Change{Command: &wire.Command{Op: &wire.Command_Settle{Settle: op}}})
	return err
}

func settleOp(s Settle) (*wire.Settle, error) {
	switch {
	case len(s.Receipts) == 0 || len(s.Receipts) > gearsfs.BatchRecordsMax:
		return nil, gearsfs.ErrInvalid.Because("settle takes 1 to %d receipts", gearsfs.BatchRecordsMax)
	case s.Return && s.Extend != 0:
		return nil, gearsfs.ErrInvalid.Because("a lease is returned or extended, not both")
	case !s.Return && (s.Delay != 0 || s.Tries != 0):
		return nil, gearsfs.ErrInvalid.Because("only what is returned has a delay or tries")
	}
	block := make([]wire.Receipt, len(s.Receipts))
	op := &wire.Settle{Receipts: make([]*wire.Receipt, len(s.Receipts)), Return: s.Return, Tries: s.Tries}
	for i, r := range s.Receipts {
		b := &block[i]
		b.Ino, b.Key, b.Fence = uint64(r.Ino), string(r.Key), r.Fence
		b.Pos, b.Seq = uint64(r.Place.Pos), uint64(r.Place.Seq)
		op.Receipts[i] = b
	}
	var err error
	if op.Delay, err = span(s.Delay); err != nil {
		return nil, err
	}
	if op.Extend, err = span(s.Extend); err != nil {
		return nil, err
	}
	return op, nil
}

// Configure implements Streams.
func (a api) Configure(ctx context.Context, f gearsfs.File, key gearsfs.Key, c StreamChange) error {
	t, path, err := target(f)
	if err != nil {
		return err
	}
	if err := key.Check(); err != nil {
		return err
	}
	op := &wire.Configure{Target: t, Key: string(key), Seal: c.Seal, Clear: c.Clear, Drop: c.Drop}
	if c.Limits != nil {
		op.SetLimits, op.LimitRecords, op.LimitBytes = true, c.Limits.Records, c.Limits.Bytes
	}
	if op.Settings, err = settingsChange(c.Set); err != nil {
		return err
	}
	_, err = a.change(ctx, &wire.Change{Path: path, Command: &wire.Command{Op: &wire.Command_Configure{Configure: op}}})
	return err
}

// settingsChange encodes a change of settings, nil where it changes nothing.
func settingsChange(c SettingsChange) (*wire.Settings, error) {
	if c == (SettingsChange{}) {
		return nil, nil
	}
	set := &wire.Settings{Tries: c.Tries, Type: c.Type, AppendOnly: c.AppendOnly, Memory: c.Memory}
	for _, d := range []struct {
		from *time.Duration
		to   **uint64
	}{{c.Age, &set.Age}, {c.IDWindow, &set.IdWindow}} {
		if d.from != nil {
			n, err := span(*d.from)
			if err != nil {
				return nil, err
			}
			*d.to = &n
		}
	}
	if c.Full != nil {
		if *c.Full > gearsfs.FullDropOldest {
			return nil, gearsfs.ErrInvalid.Because("no such policy of a full stream: %d", *c.Full)
		}
		full := uint32(*c.Full)
		set.Full = &full
	}
	if c.Type != nil && len(*c.Type) > gearsfs.KeyBytesMax {
		return nil, gearsfs.ErrTooBig.Because("a type name of %d bytes, at most %d", len(*c.Type), gearsfs.KeyBytesMax)
	}
	return set, nil
}

// ListStreams implements Streams.
func (a api) ListStreams(ctx context.Context, f gearsfs.File, after gearsfs.Key, max int) ([]gearsfs.StreamInfo, error) {
	return a.listStreams(ctx, f, &wire.ListStreams{After: string(after), Max: uint32(min(max, gearsfs.BatchRecordsMax))})
}

// Stream implements Streams.
func (a api) Stream(ctx context.Context, f gearsfs.File, key gearsfs.Key) (gearsfs.StreamInfo, error) {
	if err := key.Check(); err != nil {
		return gearsfs.StreamInfo{}, err
	}
	infos, err := a.listStreams(ctx, f, &wire.ListStreams{After: string(key), Max: 1, Only: true})
	if err != nil {
		return gearsfs.StreamInfo{}, err
	}
	if len(infos) == 0 {
		return gearsfs.StreamInfo{Key: key}, nil
	}
	return infos[0], nil
}

func (a api) listStreams(ctx context.Context, f gearsfs.File, l *wire.ListStreams) ([]gearsfs.StreamInfo, error) {
	t, path, err := target(f)
	if err != nil {
		return nil, err
	}
	l.Target, l.Path = t, path
	resp, err := a.query(ctx, &wire.Query{Op: &wire.Query_ListStreams{ListStreams: l}})
	if err != nil {
		return nil, err
	}
	infos := make([]gearsfs.StreamInfo, len(resp.Streams))
	for i, s := range resp.Streams {
		infos[i] = streamFromWire(s)
	}
	return infos, nil
}
