package persist

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
	"github.com/stretchr/testify/require"
)

// go test ./persist -run TestGolden -write-golden makes what is missing in
// testdata: golden-vN is of format version N; golden-vN-member and
// golden-vN-queue, -jump and -space have what came later without making older
// data unreadable: a member of a group, with a snapshot installed; timers, ids
// and transactions; jumps of log time. They are made once, and kept: those of
// golden-v1… by the program of that version. golden-v2 has extents.
var writeGolden = flag.Bool("write-golden", false, "write what testdata lacks for this format version")

var goldenIdentity = Identity{Name: "golden \"node\"", Node: ID{1, 2, 3}, Volume: ID{4, 5, 6}}

// goldenRows has a row of each table.
func goldenRows() map[string][]byte {
	place := gearsfs.Place{Pos: 300, Seq: 4}
	session := gearsfs.SessionID{Minted: 1234567890, Salt: 99}
	rows := map[string][]byte{}
	for key, row := range map[string]interface{ MarshalVT() ([]byte, error) }{
		string(VolumeKey()): &wire.VolumeRow{Format: 1, Id: goldenIdentity.Volume[:], Name: "main",
			AppliedIndex: 30, AppliedTerm: 3, LogTime: 1234567891, NextIno: 9, Inodes: 3, Bytes: 5000, NextFence: 7},
		string(InodeKey(2)):                    &wire.InodeRow{Mode: 0o100644, Nlink: 1, Uid: 1000, Gid: 100, Mtime: 5, Streams: 1, Xattrs: 1, Taken: true},
		string(DirentKey(1, "jobs")):           &wire.DirentRow{Ino: 2, Type: 0o100000},
		string(StreamKey(2, "data")):           &wire.StreamRow{NextSeq: 6, HeadPos: 100, HeadSeq: 2, CursorPos: 300, CursorSeq: 4, TailPos: 500, Ready: 2, Leased: 1, Version: 9},
		string(RecordKey(2, "data", place)):    &wire.RecordRow{Data: bytes.Repeat([]byte("record "), 20), Type: "text", Time: 77},
		string(RecordKey(2, "large", place)):   &wire.RecordRow{Data: bytes.Repeat([]byte("large "), 1000), Time: 78},
		string(RecordKey(2, "extents", place)): oldExtents{},
		string(OutKey(2, "data", place)):       &wire.OutRow{Leased: true, SessionMinted: 1234567890, SessionSalt: 99, Fence: 6, Deliveries: 2},
		string(SessionKey(session)): &wire.SessionRow{Confirmed: 3, Answers: []*wire.StoredAnswer{
			{Seq: 4, Ino: 2, FirstSeq: 5, LastSeq: 5, Taken: []*wire.Reference{{Ino: 2, Key: "data", Pos: 300, Seq: 4}}}}},
		string(OrphanKey(8)):   &wire.OrphanRow{Holders: []uint64{1234567890, 99}},
		string(RemoteKey("b")): &wire.RemoteRow{Addrs: "unix:/run/b.sock,host:4242"},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[key] = value
	}
	rows[string(XattrKey(2, "user.colour"))] = []byte("blue")
	return rows
}

// oldExtents is a record's row with an extent as the messages had it before there
// was a block store; none was ever written.
type oldExtents struct{}

func (oldExtents) MarshalVT() ([]byte, error) {
	return []byte("*\x14\x09\x01\x00\x00\x00\x00\x00\x00\x00\x10\x02\x18\x03 \x04-\x05\x00\x00\x00"), nil
}

// goldenLog is what the log holds: entries of several segments, with some that
// were replaced and some that were cut off.
func goldenLog() (first uint64, entries []LogEntry, hard string) {
	for i := uint64(1); i <= 40; i++ {
		term := 1 + i/10
		if i > 35 {
			term = 9
		}
		entries = append(entries, LogEntry{Index: i, Term: term, Type: uint8(i % 3), Data: bytes.Repeat([]byte{byte(i)}, int(i)*9)})
	}
	return 33, entries, "term 9, vote 1, commit 40"
}

// goldenMember is the identity of golden-vN-member.
func goldenMember() Identity {
	id := goldenIdentity
	id.Member = 0x8000000000000abc
	return id
}

// goldenQueueRows has a row of each table that streams have got since.
func goldenQueueRows() map[string][]byte {
	rows := goldenRows()
	session := gearsfs.SessionID{Minted: 1234567890, Salt: 100}
	place := gearsfs.Place{Pos: 300, Seq: 4}
	for key, row := range map[string]interface{ MarshalVT() ([]byte, error) }{
		string(StreamKey(2, "jobs")): &wire.StreamRow{NextSeq: 9, TailPos: 900, Ready: 3, Version: 20, Delayed: 2, DelayedAhead: 1, Age: 60e9,
			Full: 2, Tries: 5, Type: "job", IdWindow: 3600e9, AppendOnly: true, Memory: true, Discarded: 7, Ids: 1, NextId: 12, AgeDue: 1234567999},
		string(OutKey(2, "jobs", place)):    &wire.OutRow{Deliveries: 1, Deadline: 1234568000, Bytes: 6, Tries: 3},
		string(IDKey(2, "jobs", "id\x001")): &wire.IdRow{Seq: 8, Number: 11, Time: 1234567890},
		string(SessionKey(session)): &wire.SessionRow{Answers: []*wire.StoredAnswer{{Seq: 1, Count: 2, Steps: []*wire.StoredAnswer{
			{Ino: 2, Taken: []*wire.Reference{{Ino: 2, Key: "jobs", Pos: 1, Seq: 2, Fence: 3, LastPos: 4, LastSeq: 5, Deliveries: 1}}},
			{Taken: []*wire.Reference{{Ino: 2, Key: "jobs", Kept: []*wire.KeptRecord{{Pos: 1, Seq: 2, Row: &wire.RecordRow{Data: []byte("seen")}}}}}},
		}}}},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[key] = value
	}
	rows[string(IDOrderKey(2, "jobs", 11))] = []byte("id\x001")
	for _, timer := range []Timer{{Due: 1234568000, Ino: 2, Key: "jobs", Place: place}, {Due: 1234567999, Ino: 2, Key: "jobs", Place: AgeTimer}} {
		rows[string(TimerKey(timer))] = nil
	}
	return rows
}

// goldenJumpRows has what tells of a jump of log time.
func goldenJumpRows() map[string][]byte {
	rows := goldenQueueRows()
	place := gearsfs.Place{Pos: 300, Seq: 4}
	for key, row := range map[string]interface{ MarshalVT() ([]byte, error) }{
		string(VolumeKey()): &wire.VolumeRow{Format: 1, Id: goldenIdentity.Volume[:], Name: "main",
			AppliedIndex: 30, AppliedTerm: 3, LogTime: 1234567891, NextIno: 9, Inodes: 3, Bytes: 5000, NextFence: 7,
			Jumps: []*wire.Jump{{At: 1234560000, By: 3600}, {At: 1234561000, By: 5}}},
		string(OutKey(2, "jobs", place)): &wire.OutRow{Leased: true, Fence: 6, Deliveries: 1, Deadline: 1234568000, Bytes: 6, Tries: 3, Jumped: 3600},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[key] = value
	}
	return rows
}

// goldenExtentRows has what refers to the block store.
func goldenExtentRows() map[string][]byte {
	rows := goldenJumpRows()
	delete(rows, string(RecordKey(2, "extents", gearsfs.Place{Pos: 300, Seq: 4})))
	stored := &wire.Extent{Origin: 0x8000000000000abc, Segment: 1234567, At: 8192, Size: 5000, Offset: 100, Length: 4900, Sums: []byte("12345678")}
	inline := &wire.Extent{Length: 6, Data: []byte("inline")}
	place, session := gearsfs.Place{Pos: 131072, Seq: 5}, gearsfs.SessionID{Minted: 1234567890, Salt: 101}
	for key, row := range map[string]interface{ MarshalVT() ([]byte, error) }{
		string(VolumeKey()): &wire.VolumeRow{Format: FormatVersion, Id: goldenIdentity.Volume[:], Name: "main",
			AppliedIndex: 30, AppliedTerm: 3, LogTime: 1234567891, NextIno: 9, Inodes: 3, Bytes: 5000, NextFence: 7, Shared: 1},
		string(StreamKey(2, "blocks")):        &wire.StreamRow{NextSeq: 6, TailPos: 140000, Ready: 1, Version: 9, Blocks: true, Extents: 1},
		string(RecordKey(2, "blocks", place)): &wire.RecordRow{Extents: []*wire.Extent{inline, stored, {Length: 7}}, Time: 79, Block: true},
		string(SharedKey(3, 17, 4096)):        &wire.SharedRow{Size: 8192, Refs: 3},
		string(SessionKey(session)): &wire.SessionRow{Answers: []*wire.StoredAnswer{{Seq: 1, Taken: []*wire.Reference{
			{Ino: 2, Key: "blocks", Kept: []*wire.KeptRecord{{Pos: 1, Seq: 2, Row: &wire.RecordRow{Extents: []*wire.Extent{stored}}}}}}}}},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[key] = value
	}
	return rows
}

// goldenSpaceRows has what quotas and locks are made of.
func goldenSpaceRows() map[string][]byte {
	rows := goldenQueueRows()
	for key, row := range map[string]interface{ MarshalVT() ([]byte, error) }{
		string(VolumeKey()): &wire.VolumeRow{Format: FormatVersion, Id: goldenIdentity.Volume[:], Name: "main",
			AppliedIndex: 30, AppliedTerm: 3, LogTime: 1234567891, NextIno: 9, Inodes: 3, Bytes: 5000, NextFence: 7, Counting: 1},
		string(InodeKey(2)): &wire.InodeRow{Mode: 0o100644, Nlink: 1, Streams: 2, Bytes: 5000, Counted: true, Quota: 1},
		string(QuotaKey(1)): &wire.QuotaRow{Outer: 3, LimitBytes: 1 << 30, LimitInodes: 1000, Bytes: 5000, Inodes: 2},
		string(QuotaKey(3)): &wire.QuotaRow{Bytes: 5000, Inodes: 2, Removed: true},
		string(CountKey(1)): &wire.CountRow{After: "f"},
		string(LockKey(2)): &wire.LockRow{Locks: []*wire.HeldLock{
			{SessionMinted: 5, SessionSalt: 6, Lock: &wire.Lock{Owner: 7, Kind: 2, Start: 8, End: 9, Pid: 10}},
			{SessionMinted: 5, SessionSalt: 6, Lock: &wire.Lock{Owner: 8, Flock: true, Kind: 1, Start: 20, End: 1<<63 - 1}},
		}},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[key] = value
	}
	return rows
}

// goldenMemberRows has a row of each table that a member has.
func goldenMemberRows() map[string][]byte {
	rows := goldenRows()
	for id, row := range map[gearsfs.MemberID]*wire.MemberRow{
		1:                     {Name: "a", NodeId: goldenIdentity.Node[:], Addrs: "unix:/run/a.sock,host:4242", Added: 2},
		goldenMember().Member: {Name: "b", NodeId: goldenIdentity.Volume[:], Removed: true, Added: 20},
	} {
		value, err := row.MarshalVT()
		if err != nil {
			panic(err)
		}
		rows[string(MemberKey(id))] = value
	}
	return rows
}

func setGolden(t *testing.T, d *Data, rows map[string][]byte) {
	for key, value := range rows {
		d.State.Set([]byte(key), value)
	}
	require.NoError(t, d.State.Commit())
}

func makeGoldenExtents(t *testing.T, dir string) { makeFounder(t, dir, goldenExtentRows()) }

func makeGoldenSpace(t *testing.T, dir string) { makeFounder(t, dir, goldenSpaceRows()) }

func makeFounder(t *testing.T, dir string, rows map[string][]byte) {
	opts := smallData(vfs.Default)
	opts.Name, opts.SegmentBytes = goldenIdentity.Name, 4<<10
	d, err := Open(dir, opts)
	require.NoError(t, err)
	d.id.Node = goldenIdentity.Node
	require.NoError(t, d.SetVolume(goldenIdentity.Volume))
	first, entries, hard := goldenLog()
	for _, e := range entries[:35] {
		require.NoError(t, d.Log.Append([]LogEntry{e}, []byte("old")))
	}
	require.NoError(t, d.Log.Append([]LogEntry{{Index: 36, Term: 4}, {Index: 37, Term: 4}}, nil))
	require.NoError(t, d.Log.Append(entries[35:], []byte(hard)))
	require.NoError(t, d.Log.TruncateFront(first-1))
	setGolden(t, d, rows)
	require.NoError(t, d.Close())
}

// TestGolden reads what each version of the format wrote, and finds it of this
// program's version from then on.
func TestGolden(t *testing.T) {
	const v1 = "testdata/golden-v1"
	t.Run("founder", func(t *testing.T) { testGolden(t, v1, makeNothing, goldenIdentity, goldenRows()) })
	t.Run("queue", func(t *testing.T) {
		testGolden(t, v1+"-queue", makeNothing, goldenIdentity, goldenQueueRows())
	})
	t.Run("jump", func(t *testing.T) {
		testGolden(t, v1+"-jump", makeNothing, goldenIdentity, goldenJumpRows())
	})
	t.Run("space", func(t *testing.T) {
		testGolden(t, "testdata/golden-v2-space", makeGoldenSpace, goldenIdentity, goldenSpaceRows())
	})
	t.Run("member", func(t *testing.T) {
		testGolden(t, v1+"-member", makeNothing, goldenMember(), goldenMemberRows())
	})
	t.Run("extents", func(t *testing.T) {
		testGolden(t, "testdata/golden-v2", makeGoldenExtents, goldenIdentity, goldenExtentRows())
	})
}

// makeNothing is for what only an older program writes.
func makeNothing(t *testing.T, dir string) { require.Fail(t, "it is missing", dir) }

func testGolden(t *testing.T, dir string, write func(*testing.T, string), id Identity, rows map[string][]byte) {
	if _, err := os.Stat(dir); *writeGolden && os.IsNotExist(err) {
		write(t, dir)
	}
	disk := vfs.NewMem()
	copied, err := vfs.Clone(vfs.Default, disk, dir, "data")
	require.NoError(t, err)
	require.True(t, copied)
	d, err := Open("data", Options{FS: disk})
	require.NoError(t, err)
	require.Equal(t, id, d.Identity())

	first, entries, hard := goldenLog()
	require.LessOrEqual(t, d.Log.First(), first)
	require.Greater(t, d.Log.First(), uint64(1), "nothing was cut off")
	require.Equal(t, entries[len(entries)-1].Index, d.Log.Last())
	require.Equal(t, hard, string(d.Log.HardState()))
	got, err := d.Log.Entries(first, d.Log.Last()+1, 1<<20)
	require.NoError(t, err)
	require.Equal(t, entries[first-1:], got)

	it, err := d.State.Scan([]byte{0}, []byte{0xff})
	require.NoError(t, err)
	seen := map[string][]byte{}
	for ok := it.First(); ok; ok = it.Next() {
		_, err := parseRow(it.Key())
		require.NoError(t, err)
		seen[string(it.Key())] = append([]byte(nil), it.Value()...)
	}
	require.NoError(t, it.Close())
	require.Equal(t, rows, seen)
	require.NoError(t, d.Close())
	version, err := readText(disk, "data/"+formatName)
	require.NoError(t, err)
	require.Contains(t, string(version), fmt.Sprintf("version %d\n", FormatVersion))
}
