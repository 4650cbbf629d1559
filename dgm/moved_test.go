package dgm_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/wire"
)

// sender is a client that says each request, and its number, itself.
type sender struct {
	*speaker
	seq uint64
}

func (s *sender) next(op *wire.Command) *wire.Change {
	s.seq++
	op.Seq = s.seq
	return &wire.Change{Path: "/q", Command: op}
}

// again asks for a change once more, as after a connection that was lost.
func (s *sender) again(ch *wire.Change) *wire.Answer {
	s.t.Helper()
	ch.Retry = true
	return s.change(ch)
}

// do has something done that is not asked for again.
func (s *sender) do(op *wire.Command) *wire.Answer {
	s.t.Helper()
	answer := s.change(s.next(op))
	require.Zero(s.t, answer.Code, answer.Reason)
	return answer
}

// start asks for a change without waiting for its answer.
func (s *sender) start(ch *wire.Change, answers chan<- *wire.Answer) {
	s.t.Helper()
	body, err := s.request(ch).MarshalVT()
	require.NoError(s.t, err)
	s.conn.Start(body, func(answer []byte, err error) {
		resp := new(wire.Response)
		if err == nil {
			err = resp.UnmarshalVT(answer)
		}
		assert.NoError(s.t, err)
		answers <- resp.Answer
	})
}

func putTo(key string, data ...string) *wire.Command {
	p := &wire.Put{Key: key}
	for _, d := range data {
		p.Records = append(p.Records, &wire.NewRecord{Data: []byte(d)})
	}
	return &wire.Command{Op: &wire.Command_Put{Put: p}}
}

func takeFrom(key string, lease bool) *wire.Command {
	return &wire.Command{Op: &wire.Command_Take{Take: &wire.Take{Keys: []string{key}, Max: 1, Lease: lease}}}
}

func store(key string, memory bool) *wire.Command {
	return &wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{Key: key, Settings: &wire.Settings{Memory: &memory}}}}
}

func update(key, data string) *wire.Command {
	return &wire.Command{Op: &wire.Command_Update{Update: &wire.Update{Key: key, Record: &wire.NewRecord{Data: []byte(data)}}}}
}

func settleOf(rec *wire.TakenRecord) *wire.Command {
	return &wire.Command{Op: &wire.Command_Settle{Settle: &wire.Settle{Receipts: []*wire.Receipt{
		{Ino: rec.Ino, Key: rec.Key, Pos: rec.Pos, Seq: rec.Seq, Fence: rec.Fence}}}}}
}

// What was done to a stream, and is asked for again when its records are elsewhere,
// has its first answer and is not done again.
func TestAskedAgainWhereTheStreamIsElsewhere(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("in memory first: %t", first), func(t *testing.T) {
			speak(t, t.TempDir(), 1, nil, func(sp *speaker) {
				s := &sender{speaker: sp}
				s.do(putTo("other", "x"))
				for _, key := range []string{"put", "take", "lease", "settle", "update"} {
					s.do(store(key, first))
				}
				put := s.next(putTo("put", "x"))
				made := s.change(put)
				require.NotZero(t, made.LastSeq)
				s.do(takeFrom("put", false))

				s.do(putTo("take", "x"))
				take := s.next(takeFrom("take", false))
				taken := s.change(take)
				require.Len(t, taken.Records, 1)

				s.do(putTo("settle", "x"))
				settle := s.next(settleOf(s.do(takeFrom("settle", true)).Records[0]))
				require.Zero(t, s.change(settle).Code)

				s.do(putTo("lease", "x"))
				lease := s.next(takeFrom("lease", true))
				s.do(settleOf(s.change(lease).Records[0]))

				update1 := s.next(update("update", "x"))
				updated := s.change(update1)
				require.NotZero(t, updated.LastSeq)
				s.do(takeFrom("update", false))

				for _, key := range []string{"put", "take", "lease", "settle", "update"} {
					s.do(store(key, !first))
				}
				s.do(putTo("take", "later"))
				s.do(putTo("lease", "later"))
				require.Equal(t, made.LastSeq, s.again(put).LastSeq)
				again := s.again(take)
				require.Len(t, again.Records, 1, "%v", again)
				require.Equal(t, "x", string(again.Records[0].Data))
				require.Zero(t, s.again(settle).Code)
				require.Equal(t, updated.LastSeq, s.again(update1).LastSeq)
				leased := s.again(lease)
				require.Len(t, leased.Records, 1, "%v", leased)
				require.Equal(t, "later", string(leased.Records[0].Data), "what it had is gone")
				for key, records := range map[string]int{"put": 0, "take": 1, "settle": 0, "update": 0, "lease": 0} {
					for range records {
						s.do(takeFrom(key, false))
					}
					empty := s.next(takeFrom(key, false))
					empty.NoWait = true
					require.EqualValues(t, gearsfs.ErrEmpty.Code, s.change(empty).Code, key)
				}
			})
		})
	}
}

// What was refused for a reason that the first time had not is not taken to be
// undone where it was done in memory.
func TestAgainWhatIsRefusedInMemory(t *testing.T) {
	speak(t, t.TempDir(), 1, nil, func(sp *speaker) {
		s := &sender{speaker: sp}
		s.do(putTo("other", "x"))
		s.do(store("k", true))
		put := s.next(putTo("k", "x"))
		made := s.change(put)
		rename := s.next(&wire.Command{Op: &wire.Command_Rename{
			Rename: &wire.Rename{Dir: uint64(gearsfs.RootIno), Name: "q", NewDir: uint64(gearsfs.RootIno), NewName: "moved"}}})
		require.Zero(t, s.change(rename).Code)
		put.Path = "/q/under" // whatever a path may meet
		require.Equal(t, made.LastSeq, s.again(put).LastSeq)
		fresh := s.next(putTo("k", "x"))
		fresh.Path = "/q/under"
		require.NotZero(t, s.again(fresh).Code)
	})
}

// A session's puts keep their order while their stream leaves memory, or comes into
// it: none overtakes an earlier one that has come to the wrong place.
func TestPutsKeepTheirOrderWhileTheStreamMoves(t *testing.T) {
	for _, into := range []bool{true, false} {
		t.Run(fmt.Sprintf("into memory: %t", into), func(t *testing.T) {
			const rounds, puts = 20, 200
			vol := openVolume(t, t.TempDir())
			m, ten := local(t, vol), vol.Tenure()
			put(t, m, "other", "x")
			s := &sender{speaker: newSpeaker(t, t.Context(), serveUnix(t, vol), nil)}
			t.Cleanup(func() { require.NoError(t, s.conn.Close()) })
			for round := range rounds {
				key := gearsfs.Key(fmt.Sprint("k", round))
				var configured sync.WaitGroup
				configure := func(memory bool) {
					assert.NoError(t, m.Configure(t.Context(), q, key, dgm.StreamChange{Set: dgm.SettingsChange{Memory: &memory}}))
				}
				configure(!into)
				ten.HoldBack()
				configured.Go(func() { configure(into) })
				for held, _ := ten.Busy(); held == 0; held, _ = ten.Busy() {
					runtime.Gosched()
				}
				answers := make(chan *wire.Answer, puts)
				for i := range puts {
					s.start(s.next(putTo(string(key), fmt.Sprint(i))), answers)
					if i == puts/4 {
						for !ten.PutsUnderWay() {
							runtime.Gosched()
						}
						configured.Go(ten.LetAllThrough)
					}
				}
				for range puts {
					answer := <-answers
					require.Zero(t, answer.GetCode(), answer.GetReason())
				}
				configured.Wait()
				require.Equal(t, into, left(t, m, key).Settings.Memory)
				rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{key}, NoWait: true, Max: 2 * puts})
				require.NoError(t, err)
				require.Len(t, rs, puts)
				for i, rec := range rs {
					require.Equal(t, fmt.Sprint(i), string(rec.Data), "round %d", round)
				}
			}
		})
	}
}

// An update that comes while its stream is on its way into memory is put there: on
// disk it would be neither shown nor taken, and keep the stream where it is.
func TestUpdateWhileTheStreamMoves(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m, ten := local(t, vol), vol.Tenure()
	put(t, m, "other", "x")
	ten.HoldBack()
	var both sync.WaitGroup
	both.Go(func() { assert.NoError(t, m.Configure(t.Context(), q, "k", inMemory)) })
	for held, _ := ten.Busy(); held == 0; held, _ = ten.Busy() {
		runtime.Gosched()
	}
	s := &sender{speaker: newSpeaker(t, t.Context(), serveUnix(t, vol), nil)}
	t.Cleanup(func() { require.NoError(t, s.conn.Close()) })
	answers := make(chan *wire.Answer, 2)
	s.start(s.next(update("k", "new")), answers)
	s.start(s.next(putTo("other", "y")), answers) // behind it, so it has been looked at
	for !ten.PutsUnderWay() {
		runtime.Gosched()
	}
	ten.LetAllThrough()
	both.Wait()
	for range cap(answers) {
		require.Zero(t, (<-answers).Code)
	}
	require.EqualValues(t, 1, left(t, m, "k").Records)
	rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, NoWait: true})
	require.NoError(t, err)
	require.Equal(t, "new", string(rs[0].Data))
	no := false
	require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &no}}))
}

// What is done to a stream that has to be there is refused where it is missing, and
// makes none, also where it goes meanwhile.
func TestConfigureAStreamThatIsMissing(t *testing.T) {
	vol := openVolume(t, t.TempDir())
	m, ten := local(t, vol), vol.Tenure()
	put(t, m, "other", "x")
	yes, no := true, false
	keys := func() (keys []gearsfs.Key) {
		infos, err := m.ListStreams(t.Context(), q, "", 10)
		require.NoError(t, err)
		for _, info := range infos {
			keys = append(keys, info.Key)
		}
		return keys
	}
	for _, change := range []dgm.StreamChange{{Clear: true}, {Seal: &no}, {Clear: true, Seal: &no}} {
		err := m.Configure(t.Context(), q, "k", change)
		require.ErrorIs(t, err, gearsfs.ErrNotFound)
		require.ErrorContains(t, err, `no stream "k"`)
		require.Equal(t, []gearsfs.Key{"other"}, keys())
		require.NoError(t, m.Configure(t.Context(), q, gearsfs.DataKey, dgm.StreamChange{Clear: true}), "it is always there")
	}
	require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Drop: true}), "it is gone, as asked")
	require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Seal: &yes}))
	require.Equal(t, []gearsfs.Key{"k", "other"}, keys())

	ten.HoldBack()
	var both sync.WaitGroup
	both.Go(func() { assert.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Drop: true})) })
	for held, _ := ten.Busy(); held == 0; held, _ = ten.Busy() {
		runtime.Gosched()
	}
	s := &sender{speaker: newSpeaker(t, t.Context(), serveUnix(t, vol), nil)}
	t.Cleanup(func() { require.NoError(t, s.conn.Close()) })
	answers := make(chan *wire.Answer, 2)
	unseal := s.next(&wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{Key: "k", Seal: &no}}})
	s.start(unseal, answers)
	s.start(s.next(putTo("other", "y")), answers)
	for !ten.PutsUnderWay() {
		runtime.Gosched()
	}
	ten.LetAllThrough()
	both.Wait()
	codes := []uint32{(<-answers).Code, (<-answers).Code}
	require.ElementsMatch(t, []uint32{0, uint32(gearsfs.ErrNotFound.Code)}, codes)
	require.Equal(t, []gearsfs.Key{"other"}, keys())

	// What was done is not refused because the stream has gone since.
	s.do(putTo("k", "x"))
	clear := s.next(&wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{Key: "k", Clear: true}}})
	require.Zero(t, s.change(clear).Code)
	s.do(&wire.Command{Op: &wire.Command_Configure{Configure: &wire.Configure{Key: "k", Drop: true}}})
	require.Zero(t, s.again(clear).Code)
}

// Ids are remembered, and seqs rise, wherever a stream's records are, and were.
func TestIDsOutliveTheMove(t *testing.T) {
	dir := t.TempDir()
	many := make([]gearsfs.NewRecord, 5000)
	for i := range many {
		many[i] = gearsfs.NewRecord{Data: []byte("x"), ID: fmt.Sprint("many", i)}
	}
	var last gearsfs.Seq
	puts := func(m dgm.Manager, want int, records ...gearsfs.NewRecord) dgm.PutResult {
		t.Helper()
		res, err := m.Put(t.Context(), dgm.Put{File: q, Key: "k", Records: records})
		require.NoError(t, err)
		require.EqualValues(t, want, left(t, m, "k").Records)
		if want == 0 {
			return res
		}
		require.Greater(t, res.First, last)
		last = res.Last
		for want > 0 {
			rs, err := m.Take(t.Context(), dgm.Take{File: q, Keys: []gearsfs.Key{"k"}, Max: want, NoWait: true})
			require.NoError(t, err)
			want -= len(rs)
		}
		return res
	}
	move := func(m dgm.Manager, memory bool) {
		t.Helper()
		require.NoError(t, m.Configure(t.Context(), q, "k", dgm.StreamChange{Set: dgm.SettingsChange{Memory: &memory}}))
	}
	id := func(id string) gearsfs.NewRecord { return gearsfs.NewRecord{Data: []byte("x"), ID: id} }
	t.Run("first", func(t *testing.T) {
		m := local(t, openVolume(t, dir))
		put(t, m, "other", "x")
		disk := puts(m, 1, id("disk"))
		move(m, true)
		require.Equal(t, disk.Last, puts(m, 0, id("disk")).Last)
		memory := puts(m, 1, id("memory"))
		puts(m, len(many), many...)
		_, err := m.Update(t.Context(), dgm.Update{File: q, Key: "k", Record: id("disk")})
		require.NoError(t, err)
		require.Zero(t, left(t, m, "k").Records)
		move(m, false)
		require.Equal(t, disk.Last, puts(m, 0, id("disk")).Last)
		require.Equal(t, memory.Last, puts(m, 0, id("memory")).Last)
		puts(m, 0, many...)
		puts(m, 1, id("disk again"))
		move(m, true)
		puts(m, 0, id("memory"), id("disk again"), many[4999])
		puts(m, 1, id("memory again"))
		move(m, false)
		puts(m, 1, id("another"))
	})
	vol := openVolume(t, dir)
	m := local(t, vol)
	puts(m, 0, id("disk"), id("memory"), id("disk again"), id("memory again"), id("another"))
	puts(m, 0, many...)
	puts(m, 1, id("last"))
	report, err := vol.Fsck(t.Context(), false, 1<<30, nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
}
