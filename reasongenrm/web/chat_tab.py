"""The chat tab: any question, the model's reason in a separate bubble, then its answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from reasongenrm.web.chatting import ChatClient, as_typed, text_of, typed
from reasongenrm.web.guard import TooManyError, Visitors
from reasongenrm.web.markup import QUIET, show_notice
from reasongenrm.web.words import TOO_MANY

QUESTIONS = (
    "Why does ice float on water?",
    "Three friends share 24 apples, one takes half of them. How many are left for each of the others?",
    "Write a haiku about a judge who gives reasons.",
)


def chat_tab(chat: ChatClient, visitors: Visitors) -> None:
    """Build the tab's content."""
    talk = gr.Chatbot(
        label="Conversation",
        elem_id="rg-chat",
        height="55vh",
        min_height=260,
        buttons=["copy"],
        sanitize_html=True,
        allow_tags=False,
        allow_file_downloads=False,
        feedback_options=None,
        placeholder="Ask anything. The model writes its reason first, then its answer.",
    )
    notice = gr.HTML(elem_id="rg-chat-notice", elem_classes="rg-flat")
    text = gr.Textbox(label="Your message", placeholder="Enter sends, Shift+Enter is a new line", lines=1, max_lines=8)
    with gr.Row():
        send = gr.Button("Send", variant="primary", elem_id="rg-send", scale=1)
        stop = gr.Button("Stop", elem_id="rg-chat-stop", interactive=False, scale=0, min_width=110)
    gr.Examples([*QUESTIONS], text, label="Questions to try", api_visibility="private")

    async def run(request: gr.Request, message: str, history: list[dict[str, Any]]) -> AsyncIterator[dict[Any, Any]]:
        message = (message or "").strip()
        if not message:
            yield {notice: ""}
            return
        history = [*({**said, "content": text_of(said["content"])} for said in history)]
        shown_history = [*history, {"role": "user", "content": as_typed(message)}]
        asked = [
            said | {"content": typed(said["content"])} if said["role"] == "user" else said for said in shown_history
        ]
        try:
            with visitors.one_more(request.client.host if request.client else ""):
                yield {talk: shown_history, text: "", notice: "", stop: gr.Button(interactive=True)}
                async with aclosing(chat.reply(asked)) as replies:
                    async for reply in replies:
                        shown = {
                            talk: [*shown_history, *reply.messages()],
                            stop: gr.Button(interactive=not reply.ended),
                        }
                        if reply.notice:
                            shown[notice] = show_notice(reply.notice)
                            if not reply.messages():  # what was typed goes back, to be sent again
                                shown |= {talk: history, text: message}
                        yield shown
        except TooManyError:
            yield {notice: show_notice(TOO_MANY)}

    started = [send.click, text.submit]
    under_way = gr.on(started, run, [text, talk], [talk, text, notice, stop], **QUIET, trigger_mode="once")
    stop.click(lambda: gr.Button(interactive=False), None, stop, cancels=[under_way], **QUIET)
    talk.clear(lambda: ([], "", gr.Button(interactive=False)), None, [talk, notice, stop], cancels=[under_way], **QUIET)
