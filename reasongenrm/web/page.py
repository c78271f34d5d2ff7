"""The page: three tabs, and which control triggers what."""

import gradio as gr

from reasongenrm.judge.client.client import AsyncJudge
from reasongenrm.web.board import Shelf
from reasongenrm.web.chat_tab import chat_tab
from reasongenrm.web.chatting import ChatClient
from reasongenrm.web.guard import Visitors
from reasongenrm.web.judge_tab import judge_tab
from reasongenrm.web.markup import QUIET, render, show_board, show_judge, show_notice
from reasongenrm.web.words import NOT_READY, READING

TITLE = "ReasonGenRM"
MOST_RUNNING = 16  # judgments and chats in progress on the whole page
MOST_WAITING = 64  # beyond these a visitor is told at once that the page is full
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none is fetched."""
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="stone", font=[*SYSTEM_FONTS], font_mono=[*MONO_FONTS], radius_size="sm"
    )
    return theme.set(  # the colours of the reports
        body_background_fill="#faf9f6",
        body_background_fill_dark="#15161a",
        background_fill_primary_dark="#15161a",
        background_fill_secondary_dark="#1d1f25",
        block_background_fill_dark="#1d1f25",
        input_background_fill_dark="#15161a",
        block_label_background_fill_dark="#1d1f25",
    )


def make_page(judge: AsyncJudge, chat: ChatClient, shelf: Shelf, visitors: Visitors, root_path: str) -> gr.Blocks:
    """The page as gradio's blocks; no handler has a public endpoint."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(render("head.html.j2"), elem_classes="rg-flat")
        state = gr.HTML(elem_id="rg-state", elem_classes="rg-flat")
        with gr.Tabs():
            with gr.Tab("Judge"):
                judge_tab(judge, visitors)
            with gr.Tab("Chat"):
                chat_tab(chat, visitors)
            with gr.Tab("Leaderboard") as tab:
                _board_tab(shelf, root_path, tab)

        async def look() -> str:
            card = await chat.card() if await judge.ready() else None
            return show_notice(NOT_READY) if card is None else show_judge(card)

        page.load(look, None, state, **QUIET)
    page.queue(default_concurrency_limit=MOST_RUNNING, max_size=MOST_WAITING, api_open=False)
    return page


def _board_tab(shelf: Shelf, root_path: str, tab: gr.Tab) -> None:
    gr.HTML(render("board_head.html.j2"), elem_classes="rg-flat")
    refresh = gr.Button("Refresh", elem_id="rg-refresh", size="sm", scale=0)
    table = gr.HTML(show_notice(READING), elem_id="rg-board", elem_classes="rg-flat")
    one_at_a_time = QUIET | {"show_progress": "minimal", "concurrency_limit": 1}
    gr.on([tab.select, refresh.click], lambda: show_board(shelf.board(), root_path), None, table, **one_at_a_time)
