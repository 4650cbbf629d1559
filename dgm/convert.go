package dgm

import (
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/file"
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
			n = file.EpochTime
		}
	}
	return &n
}

func attrFromWire(a *wire.Attr) gearsfs.Attr {
	if a == nil {
		return gearsfs.Attr{}
	}
	return gearsfs.Attr{
		Ino: gearsfs.Ino(a.Ino), Mode: a.Mode, Nlink: a.Nlink, UID: a.Uid, GID: a.Gid, Rdev: a.Rdev,
		Size: a.Size, Blocks: a.Blocks, Head: gearsfs.Pos(a.Head), Version: a.Version, Taken: a.Taken,
		Atime: fromNanos(a.Atime), Mtime: fromNanos(a.Mtime), Ctime: fromNanos(a.Ctime),
	}
}

func attrToWire(a gearsfs.Attr) *wire.Attr {
	return &wire.Attr{
		Ino: uint64(a.Ino), Mode: a.Mode, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID, Rdev: a.Rdev,
		Size: a.Size, Blocks: a.Blocks, Head: uint64(a.Head), Version: a.Version, Taken: a.Taken,
		Atime: nanos(a.Atime), Mtime: nanos(a.Mtime), Ctime: nanos(a.Ctime),
	}
}

func recordFromWire(t *wire.TakenRecord) gearsfs.Record {
	r := gearsfs.Record{
		Key: gearsfs.Key(t.Key), Place: gearsfs.Place{Pos: gearsfs.Pos(t.Pos), Seq: gearsfs.Seq(t.Seq)},
		Data: t.Data, Type: t.Type, Time: fromNanos(t.Time), Deliveries: t.Deliveries,
	}
	if t.Fence != 0 {
		r.Receipt = &gearsfs.Receipt{Ino: gearsfs.Ino(t.Ino), Key: r.Key, Place: r.Place, Fence: t.Fence}
	}
	if t.Deadline != 0 {
		r.Deadline = fromNanos(t.Deadline)
	}
	return r
}

func recordsFromWire(ts []*wire.TakenRecord) []gearsfs.Record {
	rs := make([]gearsfs.Record, len(ts))
	for i, t := range ts {
		rs[i] = recordFromWire(t)
	}
	return rs
}

func streamFromWire(s *wire.Stream) gearsfs.StreamInfo {
	var lost []gearsfs.LostRun
	for _, run := range s.Lost {
		if run.Fate < uint32(gearsfs.Fates) && run.First <= run.Last {
			lost = append(lost, gearsfs.LostRun{First: gearsfs.Seq(run.First), Last: gearsfs.Seq(run.Last), Fate: gearsfs.Fate(run.Fate)})
		}
	}
	return gearsfs.StreamInfo{
		Key: gearsfs.Key(s.Key), Records: s.Records, Leased: s.Leased, Bytes: s.Bytes,
		Head:    gearsfs.Place{Pos: gearsfs.Pos(s.HeadPos), Seq: gearsfs.Seq(s.HeadSeq)},
		Tail:    gearsfs.Place{Pos: gearsfs.Pos(s.TailPos), Seq: gearsfs.Seq(s.TailSeq)},
		Version: s.Version, Waiting: s.Waiting, Sealed: s.Sealed,
		Limits:  gearsfs.Limits{Records: s.LimitRecords, Bytes: s.LimitBytes},
		Delayed: s.Delayed, Discarded: s.Discarded, Settings: settingsFromWire(s.Settings), Lost: lost, LostBefore: gearsfs.Seq(s.LostBefore),
	}
}

func settingsFromWire(s *wire.Settings) gearsfs.Settings {
	return gearsfs.Settings{
		Age: time.Duration(s.GetAge()), Full: gearsfs.Full(s.GetFull()), Tries: s.GetTries(), Type: s.GetType(),
		IDWindow: time.Duration(s.GetIdWindow()), AppendOnly: s.GetAppendOnly(), Memory: s.GetMemory(),
	}
}

// settingsToWire encodes what is set; nil where nothing is.
func settingsToWire(s gearsfs.Settings) *wire.Settings {
	if s == (gearsfs.Settings{}) {
		return nil
	}
	age, full, window := uint64(s.Age), uint32(s.Full), uint64(s.IDWindow)
	return &wire.Settings{
		Age: &age, Full: &full, Tries: &s.Tries, Type: &s.Type,
		IdWindow: &window, AppendOnly: &s.AppendOnly, Memory: &s.Memory,
	}
}

func streamToWire(s gearsfs.StreamInfo) *wire.Stream {
	var lost []*wire.LostRun
	for _, run := range s.Lost {
		lost = append(lost, &wire.LostRun{First: uint64(run.First), Last: uint64(run.Last), Fate: uint32(run.Fate)})
	}
	return &wire.Stream{
		Key: string(s.Key), Records: s.Records, Leased: s.Leased, Bytes: s.Bytes,
		HeadPos: uint64(s.Head.Pos), HeadSeq: uint64(s.Head.Seq),
		TailPos: uint64(s.Tail.Pos), TailSeq: uint64(s.Tail.Seq),
		Version: s.Version, Waiting: s.Waiting, Sealed: s.Sealed,
		LimitRecords: s.Limits.Records, LimitBytes: s.Limits.Bytes,
		Delayed: s.Delayed, Discarded: s.Discarded, Settings: settingsToWire(s.Settings), Lost: lost, LostBefore: uint64(s.LostBefore),
	}
}

func usageFromWire(u *wire.Usage) gearsfs.Usage {
	if u == nil {
		return gearsfs.Usage{}
	}
	return gearsfs.Usage{BytesTotal: u.BytesTotal, BytesFree: u.BytesFree, BytesAvail: u.BytesAvail, Inodes: u.Inodes, InodesFree: u.InodesFree}
}

func usageToWire(u gearsfs.Usage) *wire.Usage {
	return &wire.Usage{BytesTotal: u.BytesTotal, BytesFree: u.BytesFree, BytesAvail: u.BytesAvail, Inodes: u.Inodes, InodesFree: u.InodesFree}
}

func statusFromWire(s *wire.NodeStatus) gearsfs.NodeStatus {
	if s == nil {
		return gearsfs.NodeStatus{}
	}
	return gearsfs.NodeStatus{
		Name: s.Name, Volume: s.Volume, Version: s.Version, Role: s.Role, Leader: s.Leader, Term: s.Term,
		Commit: gearsfs.Index(s.Commit), Applied: gearsfs.Index(s.Applied), Durable: gearsfs.Index(s.Durable),
		LogBytes: s.LogBytes, StateBytes: s.StateBytes, Sessions: s.Sessions, Waits: s.Waits,
		Usage: usageFromWire(s.Usage), Started: fromNanos(s.Started), Warnings: s.Warnings,
		Member: gearsfs.MemberID(s.Member), Last: gearsfs.Index(s.Last), LeaderSince: fromNanos(s.LeaderSince),
		Voters: s.Voters, Learners: s.Learners,
	}
}

func statusToWire(s gearsfs.NodeStatus) *wire.NodeStatus {
	return &wire.NodeStatus{
		Name: s.Name, Volume: s.Volume, Version: s.Version, Role: s.Role, Leader: s.Leader, Term: s.Term,
		Commit: uint64(s.Commit), Applied: uint64(s.Applied), Durable: uint64(s.Durable),
		LogBytes: s.LogBytes, StateBytes: s.StateBytes, Sessions: s.Sessions, Waits: s.Waits,
		Usage: usageToWire(s.Usage), Started: nanos(s.Started), Warnings: s.Warnings,
		Member: uint64(s.Member), Last: uint64(s.Last), LeaderSince: nanos(s.LeaderSince),
		Voters: s.Voters, Learners: s.Learners,
	}
}

func memberFromWire(m *wire.Member) gearsfs.Member {
	out := gearsfs.Member{ID: gearsfs.MemberID(m.GetId()), Name: m.GetName(), Addrs: m.GetAddrs()}
	copy(out.NodeID[:], m.GetNodeId())
	return out
}

func nodeInfoFromWire(n *wire.NodeInfo) gearsfs.NodeInfo {
	return gearsfs.NodeInfo{
		Member: memberFromWire(n.Member), Role: n.Role, Reachable: n.Reachable, Version: n.Version, Term: n.Term,
		Commit: gearsfs.Index(n.Commit), Applied: gearsfs.Index(n.Applied), Last: gearsfs.Index(n.Last),
		LagEntries: n.LagEntries, LagBytes: n.LagBytes, LogBytes: n.LogBytes, StateBytes: n.StateBytes,
		Trouble: n.Trouble,
	}
}

func waitFromWire(w *wire.Wait) gearsfs.Wait {
	return gearsfs.Wait{
		Session: gearsfs.SessionID{Minted: int64(w.SessionMinted), Salt: w.SessionSalt},
		Client:  w.Client, Op: w.Op, Path: w.Path, Ino: gearsfs.Ino(w.Ino), Keys: keysFromWire(w.Keys),
		Since: fromNanos(w.Since), Passed: w.Passed, Near: keysFromWire(w.Near),
	}
}

func waitToWire(w gearsfs.Wait) *wire.Wait {
	return &wire.Wait{
		SessionMinted: uint64(w.Session.Minted), SessionSalt: w.Session.Salt,
		Client: w.Client, Op: w.Op, Path: w.Path, Ino: uint64(w.Ino), Keys: keysToWire(w.Keys),
		Since: nanos(w.Since), Passed: w.Passed, Near: keysToWire(w.Near),
	}
}

func keysFromWire(ss []string) []gearsfs.Key {
	ks := make([]gearsfs.Key, len(ss))
	for i, s := range ss {
		ks[i] = gearsfs.Key(s)
	}
	return ks
}

func keysToWire(ks []gearsfs.Key) []string {
	ss := make([]string, len(ks))
	for i, k := range ks {
		ss[i] = string(k)
	}
	return ss
}

func changedFromWire(cs []*wire.Changed) []gearsfs.Change {
	out := make([]gearsfs.Change, len(cs))
	for i, c := range cs {
		out[i] = gearsfs.Change{Ino: gearsfs.Ino(c.Ino), Name: c.Name, Data: c.Data}
	}
	return out
}

func sessionID(minted, salt uint64) gearsfs.SessionID {
	return gearsfs.SessionID{Minted: int64(minted), Salt: salt}
}

// These are so many that they have short names here.

func failure(err error) *wire.Response { return answer.Failure(err) }
func errorOf(r *wire.Response) error   { return answer.ErrorOf(r) }
func answerError(a *wire.Answer) error { return answer.Error(a) }
