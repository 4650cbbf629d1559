package persist

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

// row is a key of any table in logical form.
type row struct {
	table Table
	a, b  uint64 // ino, the fields of a session id, or a timer's due and ino
	name  string
	place gearsfs.Place

	id     string // of a record
	number uint64 // in the order of ids
}

func (r row) bytes() []byte {
	switch ino := gearsfs.Ino(r.a); r.table {
	case TableVolume:
		return VolumeKey()
	case TableInode:
		return InodeKey(ino)
	case TableDirent:
		return DirentKey(ino, r.name)
	case TableXattr:
		return XattrKey(ino, r.name)
	case TableStream:
		return StreamKey(ino, gearsfs.Key(r.name))
	case TableRecord:
		return RecordKey(ino, gearsfs.Key(r.name), r.place)
	case TableOut:
		return OutKey(ino, gearsfs.Key(r.name), r.place)
	case TableSession:
		return SessionKey(gearsfs.SessionID{Minted: int64(r.a), Salt: r.b})
	case TableID:
		return IDKey(ino, gearsfs.Key(r.name), r.id)
	case TableIDOrder:
		return IDOrderKey(ino, gearsfs.Key(r.name), r.number)
	case TableTimer:
		return TimerKey(Timer{r.a, gearsfs.Ino(r.b), gearsfs.Key(r.name), r.place})
	case TableShared:
		return SharedKey(gearsfs.MemberID(r.a), r.b, r.number)
	case TableOrphan:
		return OrphanKey(ino)
	case TableMember:
		return MemberKey(gearsfs.MemberID(r.a))
	case TableQuota:
		return QuotaKey(ino)
	case TableCount:
		return CountKey(ino)
	case TableLock:
		return LockKey(ino)
	default:
		return RemoteKey(r.name)
	}
}

// parseRow takes any key apart.
func parseRow(k []byte) (r row, err error) {
	r.table = Table(k[0])
	var ino gearsfs.Ino
	var key gearsfs.Key
	switch r.table {
	case TableVolume:
	case TableInode:
		ino, err = ParseInodeKey(k)
	case TableDirent:
		ino, r.name, err = ParseDirentKey(k)
	case TableXattr:
		ino, r.name, err = ParseXattrKey(k)
	case TableStream:
		ino, key, err = ParseStreamKey(k)
		r.name = string(key)
	case TableRecord:
		ino, key, r.place, err = ParseRecordKey(k)
		r.name = string(key)
	case TableOut:
		ino, key, r.place, err = ParseOutKey(k)
		r.name = string(key)
	case TableSession:
		var id gearsfs.SessionID
		id, err = ParseSessionKey(k)
		r.a, r.b = uint64(id.Minted), id.Salt
		return r, err
	case TableID:
		ino, key, r.id, err = ParseIDKey(k)
		r.name = string(key)
	case TableIDOrder:
		ino, key, r.number, err = ParseIDOrderKey(k)
		r.name = string(key)
	case TableTimer:
		var timer Timer
		timer, err = ParseTimerKey(k)
		return row{table: r.table, a: timer.Due, b: uint64(timer.Ino), name: string(timer.Key), place: timer.Place}, err
	case TableShared:
		var origin gearsfs.MemberID
		origin, r.b, r.number, err = ParseSharedKey(k)
		r.a = uint64(origin)
		return r, err
	case TableOrphan:
		ino, err = ParseOrphanKey(k)
	case TableQuota:
		ino, err = ParseQuotaKey(k)
	case TableCount:
		ino, err = ParseCountKey(k)
	case TableLock:
		ino, err = ParseLockKey(k)
	case TableRemote:
		r.name, err = ParseRemoteKey(k)
	case TableMember:
		var id gearsfs.MemberID
		id, err = ParseMemberKey(k)
		r.a = uint64(id)
		return r, err
	default:
		err = badKey(k)
	}
	r.a = uint64(ino)
	return r, err
}

// less is the order of rows by their fields.
func (r row) compare(q row) int {
	first := cmp.Compare(r.a, q.a)
	if r.table == TableSession {
		first = cmp.Compare(int64(r.a), int64(q.a))
	}
	return cmp.Or(cmp.Compare(r.table, q.table), first, cmp.Compare(r.b, q.b), cmp.Compare(r.name, q.name),
		cmp.Compare(r.place.Pos, q.place.Pos), cmp.Compare(r.place.Seq, q.place.Seq),
		cmp.Compare(r.id, q.id), cmp.Compare(r.number, q.number))
}

var allTables = []Table{TableVolume, TableInode, TableDirent, TableXattr, TableStream, TableRecord, TableOut,
	TableSession, TableOrphan, TableRemote, TableMember, TableID, TableIDOrder, TableTimer, TableShared}

func randomRow(rng *rand.Rand) row {
	// Few values, so that rows share prefixes; edges of all kinds.
	number := func() uint64 {
		edges := []uint64{0, 1, 2, 255, 256, 1 << 32, math.MaxInt64, 1 << 63, math.MaxUint64 - 1, math.MaxUint64}
		if rng.IntN(4) == 0 {
			return rng.Uint64()
		}
		return edges[rng.IntN(len(edges))]
	}
	r := row{table: allTables[rng.IntN(len(allTables))]}
	name := make([]byte, 1+rng.IntN(3))
	for i := range name {
		name[i] = []byte{1, 0x1f, ' ', 'a', 'b', 0xfe, 0xff}[rng.IntN(7)]
	}
	if rng.IntN(20) == 0 {
		name = bytes.Repeat(name[:1], gearsfs.KeyBytesMax)
	}
	switch r.table {
	case TableVolume:
	case TableInode, TableOrphan, TableMember:
		r.a = number()
	case TableDirent, TableXattr, TableStream:
		r.a, r.name = number(), string(name)
	case TableRecord, TableOut:
		r.a, r.name = number(), string(name)
		r.place = gearsfs.Place{Pos: gearsfs.Pos(number()), Seq: gearsfs.Seq(number())}
	case TableTimer:
		r.a, r.b, r.name = number(), number(), string(name)
		r.place = gearsfs.Place{Pos: gearsfs.Pos(number()), Seq: gearsfs.Seq(number())}
	case TableSession:
		r.a, r.b = number(), number()
	case TableShared:
		r.a, r.b, r.number = number(), number(), number()
	case TableRemote:
		r.name = string(name)
	case TableID:
		r.a, r.name = number(), string(name)
		r.id = string(binary.BigEndian.AppendUint64(nil, number())[:1+rng.IntN(8)]) // NULs too
	case TableIDOrder:
		r.a, r.name, r.number = number(), string(name), number()
	}
	return r
}

func TestKeysSortAndParse(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rows := make([]row, 3000)
	for i := range rows {
		rows[i] = randomRow(rng)
		parsed, err := parseRow(rows[i].bytes())
		require.NoError(t, err)
		require.Equal(t, rows[i], parsed)
	}
	for i := range rows {
		for range 20 {
			j := rng.IntN(len(rows))
			require.Equal(t, rows[i].compare(rows[j]), bytes.Compare(rows[i].bytes(), rows[j].bytes()),
				"%+v and %+v", rows[i], rows[j])
		}
	}
	slices.SortFunc(rows, func(r, q row) int { return bytes.Compare(r.bytes(), q.bytes()) })
	require.True(t, slices.IsSortedFunc(rows, row.compare))
}

func TestRangesHoldTheirRowsOnly(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	in := func(k, lo, hi []byte) bool { return bytes.Compare(lo, k) <= 0 && bytes.Compare(k, hi) < 0 }
	for range 20000 {
		r, q := randomRow(rng), randomRow(rng)
		if rng.IntN(2) == 0 {
			q.table, q.a = r.table, r.a
		}
		k := r.bytes()
		lo, hi := TableRange(q.table)
		require.Equal(t, r.table == q.table, in(k, lo, hi))

		if r.table == TableTimer {
			lo, hi = TimerRange(min(q.a, q.b), max(q.a, q.b))
			require.Equal(t, min(q.a, q.b) <= r.a && r.a <= max(q.a, q.b), in(k, lo, hi))
			continue
		}
		ofFile := r.table != TableVolume && r.table != TableSession && r.table != TableRemote
		if ofFile {
			lo, hi = FileRange(r.table, gearsfs.Ino(q.a))
			require.Equal(t, r.a == q.a, in(k, lo, hi), "%+v in the file of %+v", r, q)
		}
		if r.table == TableID || r.table == TableIDOrder {
			lo, hi = StreamRange(r.table, gearsfs.Ino(q.a), gearsfs.Key(q.name))
			require.Equal(t, r.a == q.a && r.name == q.name, in(k, lo, hi), "%+v in the stream of %+v", r, q)
		}
		if r.table == TableRecord || r.table == TableOut {
			same := r.a == q.a && r.name == q.name
			lo, hi = StreamRange(r.table, gearsfs.Ino(q.a), gearsfs.Key(q.name))
			require.Equal(t, same, in(k, lo, hi), "%+v in the stream of %+v", r, q)
			to := gearsfs.Place{Pos: q.place.Pos + 300, Seq: q.place.Seq}
			between := same && !r.place.Less(q.place) && r.place.Less(to)
			make := RecordRange
			if r.table == TableOut {
				make = OutRange
			}
			lo, hi = make(gearsfs.Ino(q.a), gearsfs.Key(q.name), q.place, to)
			require.Equal(t, between, in(k, lo, hi))
		}
	}
}

func TestAppendKeysAppend(t *testing.T) {
	place := gearsfs.Place{Pos: 3, Seq: 4}
	id := gearsfs.SessionID{Minted: 5, Salt: 6}
	for _, k := range [][2][]byte{
		{AppendInodeKey([]byte("x"), 1), InodeKey(1)},
		{AppendDirentKey([]byte("x"), 1, "n"), DirentKey(1, "n")},
		{AppendXattrKey([]byte("x"), 1, "n"), XattrKey(1, "n")},
		{AppendStreamKey([]byte("x"), 1, "k"), StreamKey(1, "k")},
		{AppendRecordKey([]byte("x"), 1, "k", place), RecordKey(1, "k", place)},
		{AppendOutKey([]byte("x"), 1, "k", place), OutKey(1, "k", place)},
		{AppendSessionKey([]byte("x"), id), SessionKey(id)},
		{AppendOrphanKey([]byte("x"), 1), OrphanKey(1)},
		{AppendRemoteKey([]byte("x"), "n"), RemoteKey("n")},
		{AppendIDKey([]byte("x"), 1, "k", "id"), IDKey(1, "k", "id")},
		{AppendIDOrderKey([]byte("x"), 1, "k", 7), IDOrderKey(1, "k", 7)},
		{AppendTimerKey([]byte("x"), Timer{1, 2, "k", place}), TimerKey(Timer{1, 2, "k", place})},
	} {
		require.Equal(t, append([]byte("x"), k[1]...), k[0])
	}
	buf := make([]byte, 0, 64)
	require.Zero(t, testing.AllocsPerRun(100, func() { buf = AppendRecordKey(buf[:0], 1, "data", place) }))
	key := RecordKey(1, "data", place)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if p, err := ParsePlace(key); err != nil || p != place {
			t.Fatal(p, err)
		}
	}))
}

// FuzzParseKey: what a parser accepts is what its constructor makes.
func FuzzParseKey(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		f.Add(randomRow(rng).bytes())
	}
	f.Fuzz(func(t *testing.T, k []byte) {
		if _, err := ParsePlace(k); err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
		}
		if len(k) == 0 {
			return
		}
		r, err := parseRow(k)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			return
		}
		if r.table != TableVolume {
			require.Equal(t, k, r.bytes())
		}
	})
}

// FuzzParseRecord: a segment's bytes never make the decoder panic, and what it
// accepts is what the encoder makes.
func FuzzParseRecord(f *testing.F) {
	f.Add(appendRecord(nil, 40, record{generation: 1, kind: kindEntry, index: 1, term: 1, payload: []byte("x")}), int64(40))
	f.Add(appendRecord(nil, 0, head{number: 1, first: 1}.record(1)), int64(0))
	f.Add(make([]byte, 80), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		r, ok := parseRecord(b, off)
		if !ok {
			return
		}
		again := appendRecord(nil, off, r)
		require.Equal(t, b[:recordHeaderBytes+len(r.payload)], again[:recordHeaderBytes+len(r.payload)])
		if h, ok := parseHead(r, 1); ok {
			require.LessOrEqual(t, h.first, uint64(1))
		}
		parseFront(r)
	})
}

// FuzzParseIdentity covers the text files.
func FuzzParseIdentity(f *testing.F) {
	f.Add(Identity{Name: "a\"b", Node: ID{1}}.format())
	f.Add(Identity{Name: "b", Node: ID{1}, Volume: ID{2}, Member: 0xabc}.format())
	f.Add(formatText(formatTitle, textLine{"version", "1"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parseIdentity(b)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			return
		}
		again, err := parseIdentity(id.format())
		require.NoError(t, err)
		require.Equal(t, id, again)
	})
}
