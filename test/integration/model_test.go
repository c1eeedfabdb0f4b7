package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/coder/websocket"
)

// Stand-ins of the APIs of two models. The first turn calls a tool that runs
// the command, the next one says that all is done, and tells the key.

type object = map[string]any

const maxAsked = 8 << 20 // bytes of one request: an agent sends all its tools

func isDone(asked []byte, result string) bool { return strings.Contains(string(asked), result) }

// stream sends server-sent events, each by itself.
func stream(w http.ResponseWriter, events []object) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, e := range events {
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e["type"], encoded(e))
		http.NewResponseController(w).Flush()
	}
}

func encoded(o object) []byte {
	data, err := json.Marshal(o)
	if err != nil { // texts and numbers encode
		panic(err)
	}
	return data
}

// messages is the Messages API.
func messages(command string) func(http.ResponseWriter, *http.Request, string) {
	return func(w http.ResponseWriter, r *http.Request, key string) {
		asked, err := io.ReadAll(io.LimitReader(r.Body, maxAsked))
		if err != nil || r.URL.Path != "/v1/messages" {
			return
		}
		block, stop := object{"type": "text", "text": ""}, "end_turn"
		deltas := []object{{"type": "text_delta", "text": "all done with "}, {"type": "text_delta", "text": key}}
		if !isDone(asked, `"tool_result"`) {
			input := string(encoded(object{"command": command, "description": "work"}))
			block, stop = object{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": object{}}, "tool_use"
			deltas = []object{{"type": "input_json_delta", "partial_json": input[:9]}, {"type": "input_json_delta", "partial_json": input[9:]}}
		}
		events := []object{
			{"type": "message_start", "message": object{"id": "msg_1", "type": "message", "role": "assistant", "model": "stand-in",
				"content": []any{}, "stop_reason": nil, "stop_sequence": nil, "usage": object{"input_tokens": 1, "output_tokens": 1}}},
			{"type": "content_block_start", "index": 0, "content_block": block},
		}
		for _, d := range deltas {
			events = append(events, object{"type": "content_block_delta", "index": 0, "delta": d})
		}
		stream(w, append(events, object{"type": "content_block_stop", "index": 0},
			object{"type": "message_delta", "delta": object{"stop_reason": stop, "stop_sequence": nil}, "usage": object{"output_tokens": 9}},
			object{"type": "message_stop"}))
	}
}

// responses is the Responses API. It has a WebSocket for one turn, the one that
// calls the tool; whoever comes again is sent to HTTP.
func responses(command string) func(http.ResponseWriter, *http.Request, string) {
	used := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request, key string) {
		if r.Header.Get("Upgrade") == "" {
			if asked, err := io.ReadAll(io.LimitReader(r.Body, maxAsked)); err == nil {
				stream(w, response(asked, command, key))
			}
			return
		}
		select {
		case used <- struct{}{}:
			oneTurn(w, r, command, key)
		default:
			http.Error(w, "use HTTP", http.StatusUpgradeRequired)
		}
	}
}

// oneTurn answers what comes over a WebSocket until a tool was called.
func oneTurn(w http.ResponseWriter, r *http.Request, command, key string) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(maxAsked)
	for called := false; !called; {
		_, asked, err := c.Read(r.Context())
		if err != nil {
			return
		}
		// Before the first turn comes one without input, to warm up.
		if called = !isDone(asked, `"input":[]`); !called {
			asked = append(asked, `"function_call_output"`...)
		}
		for _, e := range response(asked, command, key) {
			if err := c.Write(r.Context(), websocket.MessageText, encoded(e)); err != nil {
				return
			}
		}
	}
}

// response answers one request of the Responses API.
func response(asked []byte, command, key string) []object {
	item := object{"type": "message", "id": "msg_1", "role": "assistant", "content": []object{{"type": "output_text", "text": "all done with " + key}}}
	if !isDone(asked, `"function_call_output"`) {
		item = object{"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "exec_command", "arguments": string(encoded(object{"cmd": command}))}
	}
	at := func(status string, output []object) object {
		return object{"id": "resp_1", "object": "response", "status": status, "output": output, "usage": object{
			"input_tokens": 1, "output_tokens": 1, "total_tokens": 2,
			"input_tokens_details": object{"cached_tokens": 0}, "output_tokens_details": object{"reasoning_tokens": 0}}}
	}
	return []object{
		{"type": "response.created", "response": at("in_progress", []object{})},
		{"type": "response.output_item.added", "output_index": 0, "item": item},
		{"type": "response.output_item.done", "output_index": 0, "item": item},
		{"type": "response.completed", "response": at("completed", []object{item})},
	}
}
