package tests

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A daemon with --http tells of itself, and ends with it.
func TestHTTP(t *testing.T) {
	t.Parallel()
	at := freeAddr(t)
	d := startDaemon(t, "--name", "first", "--http", at)
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + at + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{
		"/healthz": "ok\n", "/readyz": "ready\n", "/metrics": "\ngearsfs_is_leader 1\n", "/": "/metrics",
	} {
		status, text := get(path)
		assert.Equal(t, 200, status, path)
		assert.Contains(t, text, want, path)
	}
	status, _ := get("/nonsense")
	assert.Equal(t, 404, status)

	other := newDaemon(t, "--http", at)
	err := other.tryStart()
	require.ErrorContains(t, err, "gearsfsd: --http: "+at)
	assert.ErrorContains(t, err, "in use")
	assert.NoDirExists(t, other.data, "an address that is taken is found before data are made")
	for addr, why := range map[string]string{"0.0.0.0:0": "--insecure", "nonsense": "host:port"} {
		bad := newDaemon(t, "--http", addr)
		err := bad.tryStart()
		require.ErrorContains(t, err, why)
		assert.Equal(t, 2, bad.cmd.ProcessState.ExitCode(), addr)
		assert.Equal(t, 2, strings.Count(err.Error(), "\n")+1, "one line: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	d.stop()
	_, err = net.Dial("tcp", at)
	assert.Error(t, err, "nobody listens any more")
}
