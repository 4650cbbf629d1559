package dgm

import (
	"time"

	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/wire"
)

func nanos(t time.Time) uint64 { return uint64(t.UnixNano()) }

func fromNanos(n uint64) time.Time { return time.Unix(0, int64(n)) }

// setTime encodes a time to set: 0 stands for the log's time.
func setTime(t *time.Time) *uint64 {
	if t == nil {
		return nil
	}
	var n uint64
	if !t.IsZero() {
		n = nanos(*t)
		if n == 0 {
			n = 1 // the epoch itself: 0 is taken
		}
	}
	return &n
}

func attrFromWire(a *wire.Attr) gears.Attr {
	if a == nil {
		return gears.Attr{}
	}
	return gears.Attr{
		Ino: gears.Ino(a.Ino), Mode: a.Mode, Nlink: a.Nlink, UID: a.Uid, GID: a.Gid, Rdev: a.Rdev,
		Size: a.Size, Blocks: a.Blocks, Head: gears.Pos(a.Head), Version: a.Version, Taken: a.Taken,
		Atime: fromNanos(a.Atime), Mtime: fromNanos(a.Mtime), Ctime: fromNanos(a.Ctime),
	}
}

func attrToWire(a gears.Attr) *wire.Attr {
	return &wire.Attr{
		Ino: uint64(a.Ino), Mode: a.Mode, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID, Rdev: a.Rdev,
		Size: a.Size, Blocks: a.Blocks, Head: uint64(a.Head), Version: a.Version, Taken: a.Taken,
		Atime: nanos(a.Atime), Mtime: nanos(a.Mtime), Ctime: nanos(a.Ctime),
	}
}

func recordFromWire(t *wire.TakenRecord) gears.Record {
	r := gears.Record{
		Key: gears.Key(t.Key), Place: gears.Place{Pos: gears.Pos(t.Pos), Seq: gears.Seq(t.Seq)},
		Data: t.Data, Type: t.Type, Time: fromNanos(t.Time), Deliveries: t.Deliveries,
	}
	if t.Fence != 0 {
		r.Receipt = &gears.Receipt{Ino: gears.Ino(t.Ino), Key: r.Key, Place: r.Place, Fence: t.Fence}
	}
	return r
}

func recordsFromWire(ts []*wire.TakenRecord) []gears.Record {
	rs := make([]gears.Record, len(ts))
	for i, t := range ts {
		rs[i] = recordFromWire(t)
	}
	return rs
}

func recordToWire(r gears.Record) *wire.TakenRecord {
	t := &wire.TakenRecord{
		Key: string(r.Key), Pos: uint64(r.Place.Pos), Seq: uint64(r.Place.Seq),
		Data: r.Data, Type: r.Type, Time: nanos(r.Time), Deliveries: r.Deliveries,
	}
	if r.Receipt != nil {
		t.Fence, t.Ino = r.Receipt.Fence, uint64(r.Receipt.Ino)
	}
	return t
}

func streamFromWire(s *wire.Stream) gears.StreamInfo {
	return gears.StreamInfo{
		Key: gears.Key(s.Key), Records: s.Records, Leased: s.Leased, Bytes: s.Bytes,
		Head:    gears.Place{Pos: gears.Pos(s.HeadPos), Seq: gears.Seq(s.HeadSeq)},
		Tail:    gears.Place{Pos: gears.Pos(s.TailPos), Seq: gears.Seq(s.TailSeq)},
		Version: s.Version, Waiting: s.Waiting, Sealed: s.Sealed,
		Limits: gears.Limits{Records: s.LimitRecords, Bytes: s.LimitBytes},
	}
}

func streamToWire(s gears.StreamInfo) *wire.Stream {
	return &wire.Stream{
		Key: string(s.Key), Records: s.Records, Leased: s.Leased, Bytes: s.Bytes,
		HeadPos: uint64(s.Head.Pos), HeadSeq: uint64(s.Head.Seq),
		TailPos: uint64(s.Tail.Pos), TailSeq: uint64(s.Tail.Seq),
		Version: s.Version, Waiting: s.Waiting, Sealed: s.Sealed,
		LimitRecords: s.Limits.Records, LimitBytes: s.Limits.Bytes,
	}
}

func usageFromWire(u *wire.Usage) gears.Usage {
	if u == nil {
		return gears.Usage{}
	}
	return gears.Usage{BytesTotal: u.BytesTotal, BytesFree: u.BytesFree, Inodes: u.Inodes}
}

func usageToWire(u gears.Usage) *wire.Usage {
	return &wire.Usage{BytesTotal: u.BytesTotal, BytesFree: u.BytesFree, Inodes: u.Inodes}
}

func statusFromWire(s *wire.NodeStatus) gears.NodeStatus {
	if s == nil {
		return gears.NodeStatus{}
	}
	return gears.NodeStatus{
		Name: s.Name, Volume: s.Volume, Version: s.Version, Role: s.Role, Leader: s.Leader, Term: s.Term,
		Commit: gears.Index(s.Commit), Applied: gears.Index(s.Applied), Durable: gears.Index(s.Durable),
		LogBytes: s.LogBytes, StateBytes: s.StateBytes, Sessions: s.Sessions, Waits: s.Waits,
		Usage: usageFromWire(s.Usage), Started: fromNanos(s.Started), Warnings: s.Warnings,
	}
}

func statusToWire(s gears.NodeStatus) *wire.NodeStatus {
	return &wire.NodeStatus{
		Name: s.Name, Volume: s.Volume, Version: s.Version, Role: s.Role, Leader: s.Leader, Term: s.Term,
		Commit: uint64(s.Commit), Applied: uint64(s.Applied), Durable: uint64(s.Durable),
		LogBytes: s.LogBytes, StateBytes: s.StateBytes, Sessions: s.Sessions, Waits: s.Waits,
		Usage: usageToWire(s.Usage), Started: nanos(s.Started), Warnings: s.Warnings,
	}
}

func waitFromWire(w *wire.Wait) gears.Wait {
	return gears.Wait{
		Session: gears.SessionID{Minted: int64(w.SessionMinted), Salt: w.SessionSalt},
		Client:  w.Client, Op: w.Op, Path: w.Path, Ino: gears.Ino(w.Ino), Keys: keysFromWire(w.Keys),
		Since: fromNanos(w.Since), Passed: w.Passed, Near: keysFromWire(w.Near),
	}
}

func waitToWire(w gears.Wait) *wire.Wait {
	return &wire.Wait{
		SessionMinted: uint64(w.Session.Minted), SessionSalt: w.Session.Salt,
		Client: w.Client, Op: w.Op, Path: w.Path, Ino: uint64(w.Ino), Keys: keysToWire(w.Keys),
		Since: nanos(w.Since), Passed: w.Passed, Near: keysToWire(w.Near),
	}
}

func keysFromWire(ss []string) []gears.Key {
	ks := make([]gears.Key, len(ss))
	for i, s := range ss {
		ks[i] = gears.Key(s)
	}
	return ks
}

func keysToWire(ks []gears.Key) []string {
	ss := make([]string, len(ks))
	for i, k := range ks {
		ss[i] = string(k)
	}
	return ss
}

func changedFromWire(cs []*wire.Changed) []gears.Change {
	out := make([]gears.Change, len(cs))
	for i, c := range cs {
		out[i] = gears.Change{Ino: gears.Ino(c.Ino), Name: c.Name, Data: c.Data}
	}
	return out
}

func sessionID(minted, salt uint64) gears.SessionID {
	return gears.SessionID{Minted: int64(minted), Salt: salt}
}

// failure is the response that carries err and nothing else.
func failure(err error) *wire.Response {
	return &wire.Response{Answer: &wire.Answer{Code: uint32(gears.CodeOf(err)), Reason: err.Error()}}
}

// errorOf is the error that a response carries, or nil.
func errorOf(r *wire.Response) error {
	if r.Answer == nil {
		return nil
	}
	return gears.FromCode(gears.Code(r.Answer.Code), r.Answer.Reason)
}
