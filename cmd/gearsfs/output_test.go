package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func record(data string) gearsfs.Record { return gearsfs.Record{Data: []byte(data)} }

func TestTable(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	require.NoError(t, a.table([][]string{{"A", "BB", "C", "D"}, {"x\ny\tz", "", "1", ""}, {"\xff", "é", "", "2"}}))
	assert.Equal(t, "A      BB  C  D\nx?y?z      1\n\xff      é      2\n", out.String())
}

func TestRecordFormats(t *testing.T) {
	for _, c := range []struct {
		format recordFormat
		data   string
		want   string
	}{
		{recordFormat{}, "a", "a\n"},
		{recordFormat{}, "a\n", "a\n"},
		{recordFormat{}, "", "\n"},
		{recordFormat{raw: true}, "a", "a"},
		{recordFormat{raw: true}, "", ""},
		{recordFormat{nul: true}, "a\n", "a\n\x00"},
	} {
		got, err := c.format.append(nil, record(c.data))
		require.NoError(t, err)
		assert.Equal(t, c.want, string(got), "%+v %q", c.format, c.data)
	}
}

func TestRecordJSON(t *testing.T) {
	r := gearsfs.Record{
		Key: "data", Place: gearsfs.Place{Pos: 5, Seq: 7}, Data: []byte("<é>\n"), Type: "t",
		Time: time.Unix(1, 5).In(time.FixedZone("", 3600)), Deliveries: 2, Receipt: &gearsfs.Receipt{},
	}
	format := recordFormat{json: formatFlag{json: true}}
	line, err := format.append(nil, r)
	require.NoError(t, err)
	assert.Equal(t, `{"key":"data","seq":7,"type":"t","time":"1970-01-01T00:00:01.000000005Z","deliveries":2,"data":"<é>\n"}`+"\n", string(line))

	r.Data = []byte{0xff, 0}
	line, err = format.append(nil, r)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(line, &fields))
	assert.Equal(t, "/wA=", fields["data_base64"])
	assert.NotContains(t, fields, "data")

	r.Data = nil
	line, err = format.append(nil, r)
	require.NoError(t, err)
	assert.Contains(t, string(line), `"data":""`, "an empty record is one")
}

// TestNamesJSON: keys and paths that are not UTF-8 can be read back from JSON.
func TestNamesJSON(t *testing.T) {
	const raw, encoded = "a\xffb", "Yf9i"
	for _, c := range []struct {
		value            any
		plain, base64    string
		wantText, wantIn any
	}{
		{recordJSON{keyJSON: keyToJSON("b")}, "key", "key_base64", "b", nil},
		{recordJSON{keyJSON: keyToJSON(raw)}, "key", "key_base64", nil, encoded},
		{recordJSON{typeJSON: typeToJSON(raw)}, "type", "type_base64", nil, encoded},
		{streamToJSON(gearsfs.StreamInfo{Key: raw}), "key", "key_base64", nil, encoded},
		{attrJSON{pathJSON: pathToJSON(raw)}, "path", "path_base64", nil, encoded},
		{faultJSON{pathJSON: pathToJSON("")}, "path", "path_base64", "", nil},
		{waitToJSON(gearsfs.Wait{}), "keys", "keys_base64", []any{}, nil},
		{waitToJSON(gearsfs.Wait{Path: raw}), "path", "path_base64", nil, encoded},
		{waitToJSON(gearsfs.Wait{Keys: []gearsfs.Key{"b", raw}}), "keys", "keys_base64", nil, []any{"Yg==", encoded}},
		{waitToJSON(gearsfs.Wait{Near: []gearsfs.Key{raw}}), "near", "near_base64", nil, []any{encoded}},
		{waitToJSON(gearsfs.Wait{Near: []gearsfs.Key{"b"}}), "near", "near_base64", []any{"b"}, nil},
	} {
		line, err := appendLine(nil, c.value)
		require.NoError(t, err)
		var fields map[string]any
		require.NoError(t, json.Unmarshal(line, &fields))
		assert.Equal(t, c.wantText, fields[c.plain], "%s", line)
		assert.Equal(t, c.wantIn, fields[c.base64], "%s", line)
	}
}

// narrow takes n bytes and then fails.
type narrow struct {
	bytes.Buffer
	n   int
	err error
}

func (w *narrow) Write(p []byte) (int, error) {
	if len(p) <= w.n {
		w.n -= len(p)
		return w.Buffer.Write(p)
	}
	n, _ := w.Buffer.Write(p[:w.n])
	w.n = 0
	return n, w.err
}

func TestSinkSaysHowManyRecordsAreWhole(t *testing.T) {
	records := []gearsfs.Record{record("one"), record("two"), record("three")}
	for room, want := range map[int]int{0: 0, 3: 0, 4: 1, 7: 1, 8: 2, 13: 2, 14: 3} {
		w := &narrow{n: room, err: syscall.ENOSPC}
		n, err := (&sink{out: w}).write(t.Context(), records)
		assert.Equal(t, want, n, "room for %d bytes", room)
		if want < 3 {
			assert.ErrorIs(t, err, syscall.ENOSPC)
		} else {
			assert.NoError(t, err)
		}
		assert.Equal(t, "one\ntwo\nthree\n"[:room], w.String())
	}
}

func TestSinkTakesABrokenPipeForTheSignal(t *testing.T) {
	n, err := (&sink{out: &narrow{err: syscall.EPIPE}}).write(t.Context(), []gearsfs.Record{record("one")})
	assert.Zero(t, n)
	assert.Equal(t, 141, exitStatus(err))
}

func TestSinkDoesNotWaitForAStuckOutput(t *testing.T) {
	stuck, out := io.Pipe()
	defer stuck.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("told to")
	cancel(why)
	s := &sink{out: out}
	n, err := s.write(ctx, []gearsfs.Record{record(strings.Repeat("x", 3*sinkChunkBytes))})
	assert.Zero(t, n)
	assert.ErrorIs(t, err, why)
}
